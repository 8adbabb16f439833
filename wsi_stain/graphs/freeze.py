"""Statistics of a tile in an ONNX graph, and their replacement by those of a slide: the cure of seams.

    InstanceNormalization    mean and variance of each channel         → BatchNormalization with constants
    GroupNormalization       mean and variance of each group           → the same
    LayerNormalization       over space, not over channels alone       → the same formula with constants
    ReduceMean, ReduceSum,   over space: norms that an exporter wrote  → a constant
    GlobalAveragePool        as their parts, and gates of channels

Statistics are measured on a few tiles that are normalised together, in batches, as in `nn.norm.measure`. A graph for
one image at a time is measured layer by layer instead, each on the tiles as the layers before it, already frozen,
leave them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wsi_stain.graphs.admit import Graph, import_onnx

TOGETHER = 4
"""Tiles that are normalised together while measuring."""
ALONE = 6
"""Most tiles for a graph that takes one image: each is run once per layer."""
OWN = "wsi_stain."
"""Prefix of the names that are added to a graph."""

Statistics = dict[str, np.ndarray]
Run = Callable[[bytes, list[str], np.ndarray], list[np.ndarray]]
"""Runs a serialised graph: outputs by name, for one input."""


@dataclass(frozen=True, slots=True)
class Point:
    """A node that computes statistics of its tile."""

    index: int
    """Of the node in the graph."""
    kind: Literal["instance", "group", "layer", "reduce"]
    axes: tuple[int, ...] = ()
    """Of a layer norm: the axes that it normalises over."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of its statistics."""
        name = f"{OWN}{self.index}"
        return (f"{name}.value",) if self.kind == "reduce" else (f"{name}.mean", f"{name}.var")


def points(graph: Graph, tile: int) -> list[Point]:
    """The nodes that compute statistics of their tile and can be frozen, in the order of the graph."""
    sizes = [_shapes(graph, side) for side in (tile, 2 * tile)]
    constants, opset = _constants(graph.model), _opset(graph.model)
    found = (_point(i, node, sizes, constants) for i, node in enumerate(graph.model.graph.node))
    # Before operator set 21, group norms had one factor per group.
    return [point for point in found if point is not None and (point.kind != "group" or opset >= 21)]


def measure(
    graph: Graph, spots: Sequence[Point], tiles: Sequence[np.ndarray], run: Run, *, batched: bool
) -> Statistics:
    """The pooled statistics of tiles, each an input of the graph.

    Args:
        graph: as admitted.
        spots: from `points`.
        tiles: float32 (1, …) each; equal tiles in equal order give equal statistics.
        run: see `Run`.
        batched: whether the graph takes several images at once.
    """
    if batched:
        data, keys = _rewritten(graph, spots, {}), [key for point in spots for key in point.keys]
        batches = [np.concatenate(tiles[i : i + TOGETHER]) for i in range(0, len(tiles), TOGETHER)]
        results = [run(data, keys, batch) for batch in batches]
        return {key: np.mean(values, axis=0) for key, *values in zip(keys, *results, strict=True)}
    statistics: Statistics = {}
    for i, point in enumerate(spots):
        data, keys = _rewritten(graph, spots[: i + 1], statistics, only=point), list(point.keys)
        first, *rest = (np.stack(values) for values in zip(*(run(data, keys, x) for x in tiles[:ALONE]), strict=True))
        statistics[keys[0]] = first.mean(0)
        if rest:  # variance within tiles, and of their means
            statistics[keys[1]] = rest[0].mean(0) + first.var(0)
    return statistics


def frozen(graph: Graph, spots: Sequence[Point], statistics: Mapping[str, np.ndarray]) -> bytes:
    """The serialised graph with the statistics as constants."""
    return _rewritten(graph, spots, statistics)


def _copy(model: Any) -> Any:
    clone = type(model)()
    clone.CopyFrom(model)
    return clone


def _opset(model: Any) -> int:
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)


def _shapes(graph: Graph, side: int) -> dict[str, list[int | None]]:
    """Sizes of all values for an input of side × side px, as far as they can be inferred."""
    onnx = import_onnx()
    model = _copy(graph.model)
    image = next(item for item in model.graph.input if item.name == graph.input)
    for dim, size in zip(image.type.tensor_type.shape.dim, _input_shape(graph, side), strict=True):
        dim.dim_value = size
    del model.graph.value_info[:]
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return {}
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {
        item.name: [dim.dim_value or None for dim in item.type.tensor_type.shape.dim]
        for item in values
        if item.type.tensor_type.HasField("shape")
    }


def _input_shape(graph: Graph, side: int) -> tuple[int, int, int, int]:
    return (1, 3, side, side) if graph.layout == "nchw" else (1, side, side, 3)


def _constants(model: Any) -> dict[str, np.ndarray]:
    """Small constants by name: axes are among them."""
    onnx = import_onnx()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer if sum(tensor.dims) <= 16}
    tensors |= {
        node.output[0]: node.attribute[0].t
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value"
    }
    return {name: onnx.numpy_helper.to_array(tensor) for name, tensor in tensors.items() if sum(tensor.dims) <= 16}


def _attribute(node: Any, name: str, default: Any) -> Any:
    onnx = import_onnx()
    found = next((item for item in node.attribute if item.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def _point(
    index: int, node: Any, sizes: list[dict[str, list[int | None]]], constants: Mapping[str, np.ndarray]
) -> Point | None:
    if node.domain not in ("", "ai.onnx") or not node.input:
        return None
    shapes = [known.get(node.input[0]) for known in sizes]
    match node.op_type:
        case "InstanceNormalization":
            return Point(index, "instance")
        case "GroupNormalization":
            return Point(index, "group")
        case "GlobalAveragePool":
            return Point(index, "reduce")
        case "LayerNormalization" if shapes[0] and not any(node.output[1:]):
            rank = len(shapes[0])
            axes = tuple(range(_attribute(node, "axis", -1) % rank, rank))
            return Point(index, "layer", axes) if _over_space(axes, shapes) else None
        case "ReduceMean" | "ReduceSum" if shapes[0]:
            own = constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else None
            listed = _attribute(node, "axes", None) if own is None else own.ravel().tolist()
            axes = tuple(axis % len(shapes[0]) for axis in (listed or range(len(shapes[0]))))
            return Point(index, "reduce") if _over_space(axes, shapes) else None
        case _:
            return None


def _over_space(axes: Sequence[int], shapes: Sequence[list[int | None] | None]) -> bool:
    """Whether the size of one of the axes depends on the size of the image."""
    small, large = shapes
    if small is None or large is None or len(small) != len(large):
        return False
    return any(small[axis] != large[axis] for axis in axes)


def _rewritten(
    graph: Graph, spots: Sequence[Point], statistics: Mapping[str, np.ndarray], *, only: Point | None = None
) -> bytes:
    """The serialised graph with constants at the points that have statistics; the others' become outputs.

    At those, all images of a batch are normalised together. With `only`, its statistics are the sole outputs.
    """
    onnx = import_onnx()
    model, own = _copy(graph.model), {point.index: point for point in spots}
    del model.graph.node[:]
    for i, node in enumerate(graph.model.graph.node):
        if i not in own:
            model.graph.node.append(node)
            continue
        write = _Writer(onnx, f"{OWN}{i}", _opset(model))
        values = [statistics[key] for key in own[i].keys if key in statistics]
        model.graph.node.extend(_replacing(write, own[i], node, values))
    outputs = [only] if only else [point for point in spots if point.keys[0] not in statistics]
    if outputs:
        del model.graph.output[:]
        keys = [key for point in outputs for key in point.keys]
        model.graph.output.extend(onnx.helper.make_tensor_value_info(key, 1, None) for key in keys)
    return model.SerializeToString()


class _Writer:
    """Makes the nodes that take the place of one node; their names begin with `name`."""

    def __init__(self, onnx: Any, name: str, opset: int) -> None:
        self.nodes: list[Any] = []
        self._onnx, self._name, self._opset = onnx, name, opset

    def __call__(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        y = to or f"{self._name}.{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), [y], **attributes))
        return y

    def constant(self, value: Any, to: str = "") -> str:
        """Add a constant array: whole numbers as int64, others as float32."""
        array = np.asarray(value)
        kind = np.int64 if array.dtype.kind == "i" else np.float32
        return self("Constant", to=to, value=self._onnx.numpy_helper.from_array(np.ascontiguousarray(array, kind)))

    def mean(self, x: str, axes: Sequence[int], to: str = "") -> str:
        """Add a mean over axes, which are kept with size 1."""
        if self._opset < 18:
            return self("ReduceMean", x, to=to, axes=list(axes), keepdims=1)
        return self("ReduceMean", x, self.constant(list(axes)), to=to, keepdims=1)


def _replacing(write: _Writer, point: Point, node: Any, values: list[np.ndarray]) -> list[Any]:
    """The nodes instead of `node`: with constants, or with the statistics of the batch as outputs."""
    if point.kind == "reduce":
        _reduce(write, point, node, values)
    elif point.kind == "instance" and values:
        epsilon = float(_attribute(node, "epsilon", 1e-5))
        given = [write.constant(value.ravel()) for value in values]
        write("BatchNormalization", *node.input[:3], *given, to=node.output[0], epsilon=epsilon)
    else:
        _normalise(write, point, node, values)
    return write.nodes


def _reduce(write: _Writer, point: Point, node: Any, values: list[np.ndarray]) -> None:
    if values:
        write.constant(values[0], to=node.output[0])
        return
    other = type(node)()
    other.CopyFrom(node)
    other.output[0] = x = f"{point.keys[0]}.each"
    write.nodes.append(other)
    write("Expand", write.mean(x, [0], to=point.keys[0]), write("Shape", x), to=node.output[0])


def _normalise(write: _Writer, point: Point, node: Any, values: list[np.ndarray]) -> None:
    x, shape, axes = node.input[0], write("Shape", node.input[0]), (0, *(point.axes or (2,)))
    rows = x
    if point.kind != "layer":  # all pixels of a channel, or of a group, in one row
        count = _attribute(node, "num_groups", 1) if point.kind == "group" else 0
        rows = write("Reshape", x, write.constant([0, count, -1]))
    if values:
        mean, var = (write.constant(value) for value in values)
        off = write("Sub", rows, mean)
    else:
        mean = write.mean(rows, axes, to=point.keys[0])
        off = write("Sub", rows, mean)
        var = write.mean(write("Mul", off, off), axes, to=point.keys[1])
    epsilon = write.constant(float(_attribute(node, "epsilon", 1e-5)))
    y = write("Div", off, write("Sqrt", write("Add", var, epsilon)))
    scale, bias = [*node.input[1:3], "", ""][:2]
    if point.kind != "layer":
        y = write("Reshape", write("Reshape", y, shape), write.constant([0, 0, -1]))
        scale, bias = (write("Reshape", given, write.constant([1, -1, 1])) for given in (scale, bias))
    y = write("Mul", y, scale)
    y = write("Add", y, bias) if bias else y
    write("Reshape", y, shape, to=node.output[0])
