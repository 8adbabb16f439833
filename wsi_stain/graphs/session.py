"""Runs an admitted ONNX graph with onnxruntime: the generator of a bundle of kind `onnx`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain.config.network import NetworkConfig
from wsi_stain.errors import BundleError, DeviceError
from wsi_stain.graphs import freeze
from wsi_stain.graphs.admit import INSTALL, Graph, admit, first_line

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
"""Device → where onnxruntime computes; the wheel of the user must hold it."""
HALF = 127.5


class OnnxGenerator:
    """Stains tiles with an ONNX graph; see the engine's `Generator` protocol.

    Args:
        data: the serialised graph, whose statistics may be frozen.
        graph: it, as admitted.
        config: values, colours and multiple.
        device: a key of `PROVIDERS`, or `auto`.
        optimise: whether onnxruntime may rewrite the graph.
    """

    def __init__(
        self, data: bytes, graph: Graph, config: NetworkConfig, device: str = "cpu", *, optimise: bool = True
    ) -> None:
        self.multiple, self.batch = config.multiple, 1
        self.device = pick_device(device)
        self._graph, self._config = graph, config
        self._session = open_session(data, self.device, optimise=optimise)

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) H&E → uint8 (N, H, W, C) stain; each tile runs alone."""
        return np.concatenate([self._stain(tile[None]) for tile in tiles])

    def _stain(self, tile: np.ndarray) -> np.ndarray:
        x = to_input(tile, self._graph, self._config)
        y = _run(self._session, self._graph, x, tile.shape[1])
        return to_pixels(y, tile.shape[1:3], self._graph, self._config)


def _run(session: Any, graph: Graph, x: np.ndarray, tile: int) -> Any:
    try:
        return session.run([graph.output], {graph.input: x})[0]
    except Exception as err:  # the classes of onnxruntime's errors are private
        if "memory" in str(err).lower() or "alloc" in str(err).lower():
            raise MemoryError(first_line(err)) from err
        raise BundleError(f"onnxruntime cannot run the graph on a tile of {tile} px: {first_line(err)}") from err


def to_input(tile: np.ndarray, graph: Graph, config: NetworkConfig) -> np.ndarray:
    """uint8 (1, H, W, 3) RGB → float32, in the graph's layout, colours and values."""
    low, high = config.values_in
    x = tile.astype(np.float32) / np.float32(HALF) - np.float32(1)
    if (low, high) != (-1, 1):
        x = (x + np.float32(1)) * np.float32((high - low) / 2) + np.float32(low)
    x = x[..., ::-1] if config.colours == "bgr" else x
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if graph.layout == "nchw" else x)


def to_pixels(y: Any, size: Sequence[int], graph: Graph, config: NetworkConfig) -> np.ndarray:
    """The graph's output → uint8 (1, H, W, C), RGB or channels, rounded to the nearest; grey is repeated.

    Raises:
        BundleError: the output is not an image of that size, or holds numbers that are not finite.
    """
    if not isinstance(y, np.ndarray) or y.dtype.kind != "f" or y.ndim != 4:
        raise BundleError(f"the output of the graph is not an image of floats, but {_kind(y)}")
    image = y.transpose(0, 2, 3, 1) if graph.layout == "nchw" else y
    expected = (1, *size, config.outputs)
    if image.shape != expected:
        raise BundleError(f"the output of the graph has the shape {image.shape} for a tile; expected {expected}")
    if not np.isfinite(image).all():
        raise BundleError("the output of the graph holds numbers that are not finite")
    low, high = config.values_out
    unit = image.astype(np.float32)
    if (low, high) != (-1, 1):
        unit = (unit - np.float32(low)) * np.float32(2 / (high - low)) - np.float32(1)
    pixels = np.clip(np.rint((unit + 1) * np.float32(HALF)), 0, 255).astype(np.uint8)
    if config.fluorescence:
        return np.ascontiguousarray(pixels)
    if config.outputs == 1:
        return np.repeat(pixels, 3, axis=3)
    return np.ascontiguousarray(pixels[..., ::-1] if config.colours == "bgr" else pixels)


def _kind(y: Any) -> str:
    return f"{y.dtype} {y.shape}" if isinstance(y, np.ndarray) else type(y).__name__


def outputs_of(graph: Graph, config: NetworkConfig, tile: int) -> int:
    """Channels of the graph's output, from a run on a grey tile.

    Raises:
        BundleError: it cannot be run, or its output is not an image of the size of the tile.
    """
    session = open_session(graph.model.SerializeToString(), "cpu")
    x = to_input(np.full((1, tile, tile, 3), 200, np.uint8), graph, config)
    y = _run(session, graph, x, tile)
    if not isinstance(y, np.ndarray) or y.ndim != 4:
        raise BundleError(f"the output of the graph is not an image, but {_kind(y)}")
    sides, count = (y.shape[2:], y.shape[1]) if graph.layout == "nchw" else (y.shape[1:3], y.shape[3])
    if sides != (tile, tile):
        raise BundleError(f"the output of the graph has {sides[0]} × {sides[1]} px for a tile of {tile} × {tile} px")
    return int(count)


def open_graph(weights: Path, config: NetworkConfig) -> Graph:
    """The admitted graph of a bundle's weight file, whose hash was checked."""
    return admit(weights.read_bytes(), str(weights), config.output)


def open_generator(
    graph: Graph, config: NetworkConfig, device: str, statistics: Path | None = None, *, tile: int = 512
) -> OnnxGenerator:
    """The generator of a graph; with statistics of a slide, if there is a file of them (the result of `measure`)."""
    from safetensors.numpy import load_file

    if statistics is None:
        return OnnxGenerator(graph.model.SerializeToString(), graph, config, device)
    data = freeze.frozen(graph, freeze.points(graph, tile), load_file(statistics))
    return OnnxGenerator(data, graph, config, device)


def measure(graph: Graph, config: NetworkConfig, tiles: Sequence[np.ndarray], device: str, *, tile: int = 512) -> bytes:
    """Statistics of a slide from its tiles, uint8 (h, w, 3) each, as the content of a safetensors file."""
    from safetensors.numpy import save

    device = pick_device(device)
    sessions: dict[bytes, Any] = {}

    def run(data: bytes, names: list[str], x: np.ndarray) -> list[np.ndarray]:
        if data not in sessions:
            sessions.clear()
            sessions[data] = open_session(data, device)
        return sessions[data].run(names, {graph.input: x})

    inputs = [to_input(pixels[None], graph, config) for pixels in tiles]
    spots, batched = freeze.points(graph, tile), takes_batches(graph, inputs[0], device)
    return save(freeze.measure(graph, spots, inputs, run, batched=batched))


def takes_batches(graph: Graph, x: np.ndarray, device: str) -> bool:
    """Whether the graph treats two images of a batch as it treats each alone; it may be declared for one only."""
    session = open_session(graph.model.SerializeToString(), device)
    try:
        (alone,) = session.run([graph.output], {graph.input: x})
        (pair,) = session.run([graph.output], {graph.input: np.concatenate([x, x])})
    except Exception:  # onnxruntime's classes are private; a graph for one image is measured in another way
        return False
    return len(pair) == 2 and all(np.allclose(each, alone[0], atol=1e-3) for each in pair)


def open_session(data: bytes, device: str, *, optimise: bool = True) -> Any:
    """A session of onnxruntime for a serialised graph; it opens no file and no library of custom operators.

    Raises:
        BundleError: onnxruntime is not installed, or refuses the graph.
    """
    ort = _import_runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    kind, _, index = device.partition(":")
    provider = (PROVIDERS[kind], {"device_id": index} if index else {})
    try:
        return ort.InferenceSession(data, options, providers=[provider])
    except Exception as err:  # the classes of onnxruntime's errors are private
        raise BundleError(f"onnxruntime refuses the graph: {first_line(err)}; export the network again") from err


def pick_device(name: str) -> str:
    """`auto` → the fastest device that this onnxruntime supports; other names are checked.

    Raises:
        DeviceError: unknown, or not supported by the installed onnxruntime.
    """
    available = _import_runtime().get_available_providers()
    kind = name.partition(":")[0]
    if kind == "auto":
        return next(key for key in ("cuda", "cpu") if PROVIDERS[key] in available)
    if kind not in PROVIDERS:
        raise DeviceError(f"--device {name}: an ONNX model runs on auto, {', '.join(PROVIDERS)}")
    if PROVIDERS[kind] not in available:
        raise DeviceError(f"--device {name}: the installed onnxruntime has no {PROVIDERS[kind]}; use --device cpu")
    return name


def _import_runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as err:
        raise BundleError(f"an ONNX model needs the library onnxruntime; {INSTALL}") from err
    return onnxruntime
