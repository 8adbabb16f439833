"""The complete state of a training in one safetensors file, replaced atomically, so a kill at any moment is safe."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from wsi_stain.errors import TrainingError
from wsi_stain.files.atomic import atomic_write
from wsi_stain.model.bundle import WEIGHTS

log = logging.getLogger(__name__)

HEAD = "head."
"""Beginning of the names of a stain head's tensors."""


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON-serialisable facts; the old file remains intact until the new one is on disk."""
    content = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    # Not `save_file`: it writes through a temporary of its own, which a kill leaves under a random name, and makes
    # files that only their owner can read.
    atomic_write(path, safetensors.torch.save(content, {"facts": json.dumps(facts)}), sole=True)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and facts that `save` wrote.

    Raises:
        TrainingError: the file is not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(json.loads((file.metadata() or {})["facts"]))
            return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as err:
        raise TrainingError(f"{path} is not a checkpoint of wsi-stain train ({err}); remove it to start again") from err


def load_start(generator: nn.Module, path: Path) -> None:
    """Load the weights and statistics of a trained generator into a new one.

    Args:
        generator: the network to fill; if its head is another than the file's, its last layer stays as it is.
        path: a bundle, a run folder, or the generator.safetensors in either.

    Raises:
        TrainingError: the file does not exist, or holds the weights of another network.
    """
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise TrainingError(f"no weights to start from at {file}: pass a bundle, a run folder or a {WEIGHTS} file")
    try:
        generator.load_state_dict(_without_other_head(generator, load_file(file)))
    except (SafetensorError, OSError) as err:
        raise TrainingError(
            f"{file} is not a weights file ({err}): pass a bundle, a run folder or a {WEIGHTS} file"
        ) from err
    except RuntimeError as err:  # torch lists every key and shape; the first line that names one is enough
        mismatch = str(err).splitlines()[1].strip(" \t.") if "\n" in str(err) else str(err)
        raise TrainingError(
            f"{file} holds a different network than the one to train ({mismatch}): "
            "use the generator settings of the training that wrote it"
        ) from err


def _without_other_head(generator: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, with the last layer and the palette of `generator` if the file has another head."""
    own = generator.state_dict()
    if any(key.startswith(HEAD) for key in own) == any(key.startswith(HEAD) for key in tensors):
        return tensors
    log.warning("the weights to start from are of a network with another head; the last layer begins anew")
    kept = [key for key in own if key.startswith((HEAD, _last_layer(own)))]
    return {key: value for key, value in tensors.items() if not key.startswith(HEAD)} | {k: own[k] for k in kept}


def _last_layer(tensors: Mapping[str, Tensor]) -> str:
    """The name of the decoder's last layer, with a dot."""
    return f"decoder.{max(int(key.split('.')[1]) for key in tensors if key.startswith('decoder.'))}."


def flatten_modules(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights and statistics of named networks as flat tensors: `<name>.<key>`."""
    return {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.state_dict().items()}


def restore_modules(parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `flatten_modules`."""
    for name, part in parts.items():
        prefix = name + "."
        part.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})


def flatten_optimizer(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as flat, named tensors: `<name>.<parameter index>.<slot>`."""
    state = optimizer.state_dict()["state"]
    return {f"{name}.{i}.{slot}": torch.as_tensor(v) for i, slots in state.items() for slot, v in slots.items()}


def restore_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `flatten_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        owner, *rest = key.split(".")
        if owner == name:
            state.setdefault(int(rest[0]), {})[rest[1]] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
