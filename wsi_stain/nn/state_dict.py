"""Reads weight files of other people's training codes: which network they hold, and its tensors under our names.

Only tensors are read (`weights_only`): a pickle that would call anything else is refused before it does.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wsi_stain.config.network import NetworkConfig
from wsi_stain.errors import BundleError
from wsi_stain.nn.published import build

MOST_BYTES = 4 << 30
MOST_WIDTH, MOST_OUTPUTS = 256, 64
"""Bounds of a network that is built before its tensors are compared."""
NAMED = 4
"""Keys that a message names."""
CONVERT = (
    "load it where it was made and save its state_dict (torch.save(network.state_dict(), 'weights.pth')), or export it "
    "with torch.onnx.export and pass --kind onnx"
)
UNUSED = ("running_mean", "running_var", "num_batches_tracked")
"""What old versions of torch saved of instance norms, and never used."""

Tensors = dict[str, Tensor]


def read(file: Path, config: NetworkConfig) -> tuple[NetworkConfig, Tensors]:
    """The network in a weight file, with what the file shows of it, and its tensors in float32.

    Args:
        file: a state dict saved by torch, or safetensors; `module.` before the names is dropped.
        config: kind, value ranges and colours; the other fields are read from the file.

    Raises:
        BundleError: the file is not a state dict, holds anything but tensors, or does not fit the kind.
    """
    tensors = _canonical(_tensors(file))
    config = _shown(tensors, config, file)
    if config.width > MOST_WIDTH or config.outputs > MOST_OUTPUTS:
        raise BundleError(
            f"{file} has a width of {config.width} and {config.outputs} outputs; "
            f"at most {MOST_WIDTH} and {MOST_OUTPUTS} are supported"
        )
    if config.norm == "instance":
        tensors = {key: value for key, value in tensors.items() if not key.endswith(UNUSED)}
    expected: Mapping[str, Tensor] = build(config).state_dict()
    _compare(tensors, expected, config, file)
    return config, {key: _like(tensors[key], value) if key in tensors else value for key, value in expected.items()}


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    return tensor.to(other.dtype).contiguous()


def _tensors(file: Path) -> Tensors:
    if not file.is_file():
        raise BundleError(f"{file} does not exist or is not a file; pass the weight file")
    if file.stat().st_size > MOST_BYTES:
        raise BundleError(f"{file} has more than {MOST_BYTES >> 30} GiB; pass the weights of the generator alone")
    with file.open("rb") as stream:
        start = stream.read(16)
    if start[8:9] == b"{":
        return _safetensors(file)
    if start[:2] == b"PK":
        _refuse_programs(file)
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as err:
        raise BundleError(f"{file} holds more than tensors, or is not a state dict ({_first(err)}); {CONVERT}") from err
    except Exception as err:  # a damaged file can make torch raise anything
        raise BundleError(f"{file} is not a weight file of torch, or is damaged ({_first(err)}); {CONVERT}") from err
    return _state(content, file)


def _safetensors(file: Path) -> Tensors:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError, OverflowError) as err:
        raise BundleError(f"{file} is not a safetensors file, or is damaged ({_first(err)}); copy it again") from err


def _refuse_programs(file: Path) -> None:
    """Refuse TorchScript and exported programs, which can execute code."""
    try:
        with zipfile.ZipFile(file) as content:
            names = content.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as err:
        raise BundleError(f"{file} is damaged ({_first(err)}); copy it again from its source") from err
    if not any(name.endswith("/data.pkl") for name in names) or any("/code/" in name for name in names):
        raise BundleError(f"{file} is a program (TorchScript or .pt2) or no weight file, and is not opened; {CONVERT}")


def _state(content: Any, file: Path) -> Tensors:
    """The state dict of a file's content: the content itself, or the only mapping of tensors in it."""
    if isinstance(content, Mapping) and not _is_state(content):
        nested = {key: value for key, value in content.items() if isinstance(value, Mapping) and _is_state(value)}
        if len(nested) > 1:
            names = ", ".join(map(str, nested))
            raise BundleError(f"{file} holds several networks ({names}); save the generator's state_dict alone")
        content = next(iter(nested.values()), None)
    if not isinstance(content, Mapping) or not _is_state(content):
        raise BundleError(f"{file} holds no state dict (names with tensors); {CONVERT}")
    return dict(content)


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _canonical(tensors: Tensors) -> Tensors:
    """Names without `module.`, and numbered as if there was no dropout, which has no effect on a trained network."""
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    if any(".conv_block.5." in key for key in tensors):
        return tensors
    return {
        re.sub(r"\.conv_block\.([67])\.", lambda number: f".conv_block.{int(number[1]) - 1}.", key): value
        for key, value in tensors.items()
    }


def _shown(tensors: Tensors, config: NetworkConfig, file: Path) -> NetworkConfig:
    """The configuration with what the tensors show: width, norm, outputs, anti-aliasing."""
    is_unet = config.kind.startswith("unet")
    kernels = {key: value for key, value in tensors.items() if key.endswith(".weight") and value.dim() == 4}
    first = "model.model.0" if is_unet else "model.1"
    numbers = [int(match[1]) for key in kernels if (match := re.fullmatch(r"model\.(\d+)\.weight", key))]
    last = "model.model.3" if is_unet else f"model.{max(numbers, default=0)}"
    if not {f"{first}.weight", f"{last}.weight"} <= set(kernels):
        raise BundleError(f"{file} does not fit {config.kind}: {_listed(list(tensors), 'its keys are')}")
    norms = {key.rpartition(".")[0] for key, value in tensors.items() if key.endswith(".weight") and value.dim() == 1}
    biases = {key.rpartition(".")[0] for key in tensors if key.endswith(".bias")} - norms - {last}
    is_batch = any(f"{name}.running_mean" in tensors for name in norms)
    sides = {value.shape[-1] for key, value in tensors.items() if key.endswith(".filt") and value.dim() == 4}
    return replace(
        config,
        # Published networks have a bias before instance norms only.
        norm="batch" if is_batch else "instance" if norms or biases else "none",
        affine=bool(norms) and not is_batch,
        width=max(1, kernels[f"{first}.weight"].shape[0]),
        outputs=max(1, kernels[f"{last}.weight"].shape[1 if is_unet else 0]),
        antialias=(3 in sides, 4 in sides),
    )


def _compare(tensors: Tensors, expected: Mapping[str, Tensor], config: NetworkConfig, file: Path) -> None:
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = [key for key in expected if key not in tensors and key not in counters]
    odd = [key for key in tensors if key not in expected]
    wrong = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    parts = [_listed(missing, "missing"), _listed(odd, "not expected"), _listed(wrong, "of another shape")]
    if missing or odd or wrong:
        raise BundleError(f"{file} does not fit {config.kind}: {'; '.join(filter(None, parts))}; choose another --kind")
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise BundleError(f"{file} holds numbers that are not finite, first in {bad[0]}; use another checkpoint")


def _listed(keys: list[str], label: str) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return f"{label} {', '.join(keys[:NAMED])}{more}"


def _first(err: BaseException) -> str:
    """The first sentence of an error of another library, on one line."""
    text = " ".join(str(err).split()) or type(err).__name__
    return re.split(r"(?<=[.!?]) ", text)[0][:160]
