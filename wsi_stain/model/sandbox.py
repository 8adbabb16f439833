"""Opens foreign model files in a process of their own, with limits of time, memory and file size.

What the process returns is JSON, and tensors as safetensors: neither can execute code in this process.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsi_stain.config.loader import dump, load
from wsi_stain.config.network import TORCH_KINDS, NetworkConfig
from wsi_stain.errors import BundleError, WsiStainError

MEMORY = 8 << 30
"""Bytes of address space for libraries and a first run, besides four times the file."""
PER_PIXEL = 4096
"""Bytes of address space for each pixel of a tile: 64 channels of float32, 16 times."""
CODE = "from wsi_stain.model.sandbox import serve; serve()"
RESULT, TENSORS = "result.json", "weights.safetensors"


@dataclass(frozen=True, slots=True)
class Task:
    """What the process does: read a state dict into `TENSORS`, or admit an ONNX graph and run it once."""

    kind: Literal["state_dict", "onnx"]
    file: str
    network: NetworkConfig
    tile: int
    folder: str
    """Of its results."""


def run(task: Task, limit_s: float) -> dict[str, Any]:
    """The result of a task.

    Raises:
        BundleError: the file is refused, exceeds a limit, or crashes the process.
    """
    command = [sys.executable, "-P", "-c", CODE]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C ends it through this process
    )
    try:
        process.communicate(json.dumps(dump(task)).encode(), timeout=limit_s)
    except subprocess.TimeoutExpired as err:
        raise BundleError(
            f"{task.file}: reading and a first run on a tile of {task.tile} px took more than {limit_s:g} s; pass a "
            "smaller tile, or a longer --limit"
        ) from err
    finally:
        process.kill()
        process.wait()
    result = Path(task.folder) / RESULT
    if process.returncode or not result.is_file():
        raise BundleError(f"{task.file} crashed the process that read it ({_end(process.returncode)}); do not use it")
    content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "error" in content:
        raise BundleError(content["error"])
    return content


def serve() -> None:
    """The other process: take a task from standard input, and write its result."""
    task = load(Task, json.loads(sys.stdin.read()))
    _limit(MEMORY + 4 * Path(task.file).stat().st_size + PER_PIXEL * task.tile**2)
    try:
        content = _read_state_dict(task) if task.kind == "state_dict" else _try_graph(task)
    except WsiStainError as err:
        content = {"error": str(err)}
    except MemoryError:
        content = {"error": f"{task.file} needs more memory than a model file may; use a smaller tile"}
    Path(task.folder, RESULT).write_text(json.dumps(content), encoding="utf-8")


def _limit(memory: int) -> None:
    if sys.platform != "linux":  # Windows has no such limits, and macOS refuses one of the address space
        return
    import resource

    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _end(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _read_state_dict(task: Task) -> dict[str, Any]:
    from safetensors.torch import save_file

    from wsi_stain.nn.state_dict import read

    assert task.network.kind in TORCH_KINDS, "ONNX has no state dict"
    network, tensors = read(Path(task.file), task.network)
    save_file(tensors, Path(task.folder, TENSORS))
    return {"network": dump(network)}


def _try_graph(task: Task) -> dict[str, Any]:
    import numpy as np

    from wsi_stain.graphs.freeze import points
    from wsi_stain.graphs.session import open_generator, open_graph, outputs_of

    graph = open_graph(Path(task.file), task.network)
    if any(side not in (None, task.tile) for side in graph.shape):
        raise BundleError(f"{task.file} takes images of {graph.shape[0]} × {graph.shape[1]} px; pass them as the tile")
    count = outputs_of(graph, task.network, task.tile)
    spots = points(graph, task.tile)
    network = {**dump(task.network), "norm": "instance" if spots else "none", "outputs": count}
    config = load(NetworkConfig, network)
    noise = np.random.default_rng(0).integers(0, 256, (1, task.tile, task.tile, 3), np.uint8)
    open_generator(graph, config, "cpu", tile=task.tile)(noise)
    return {"network": network, "points": len(spots)}
