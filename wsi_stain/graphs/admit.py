"""Which ONNX files are opened: graphs of standard operators without files, loops, programs or chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from wsi_stain.errors import BundleError

MOST_BYTES = (2 << 30) - 1
"""The limit of protobuf; larger models keep their tensors in other files, which are never opened."""
MOST_NODES, MOST_OUTPUTS = 20_000, 16
DOMAINS = ("", "ai.onnx", "com.microsoft")
MICROSOFT = frozenset(
    {
        "Attention",
        "BiasAdd",
        "BiasGelu",
        "BiasSplitGelu",
        "FastGelu",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gelu",
        "GroupNorm",
        "MultiHeadAttention",
        "NhwcMaxPool",
        "QuickGelu",
        "SkipGroupNorm",
        "SkipLayerNormalization",
    }
)
"""Operators of com.microsoft that compute; others read files or call other libraries (EPContext)."""
CHANCE = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
INSTALL = "install it with pip install 'wsi-stain[onnx]'"


Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True, slots=True)
class Graph:
    """An admitted graph."""

    model: Any
    """`onnx.ModelProto`."""
    input: str
    output: str
    layout: Layout
    shape: tuple[int | None, int | None]
    """Height and width that the file declares; None for any."""


def admit(data: bytes, name: str, output: str = "") -> Graph:
    """The graph in the bytes of an ONNX file, if it is admitted.

    Args:
        data: content of the file.
        name: of the file, for messages.
        output: name of the output that is the stain; by default the only one.

    Raises:
        BundleError: it is not ONNX, is damaged, or holds anything that is not admitted.
    """
    onnx = import_onnx()
    from google.protobuf.message import DecodeError

    if len(data) > MOST_BYTES:
        raise BundleError(f"{name} has {len(data) >> 20} MiB; an ONNX file can have at most {MOST_BYTES >> 20} MiB")
    try:
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, TypeError) as err:
        raise BundleError(f"{name} is not an ONNX file, or is damaged; export the network again") from err
    if reason := next(_objections(model), None):
        raise BundleError(f"{name} {reason}")
    del model.metadata_props[:]  # onnxruntime can read settings from them
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, TypeError) as err:
        raise BundleError(f"{name} is not a valid ONNX graph ({first_line(err)}); export the network again") from err
    return _graph(model, name, output)


def import_onnx() -> Any:
    """The library onnx.

    Raises:
        BundleError: it is not installed.
    """
    try:
        import onnx
    except ImportError as err:
        raise BundleError(f"an ONNX model needs the library onnx; {INSTALL}") from err
    return onnx


def first_line(err: BaseException) -> str:
    """The first line of an error of another library, shortened."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines[0] if lines else type(err).__name__)[:160]


def _objections(model: Any) -> Iterator[str]:
    """Why the file is not opened."""
    graph = model.graph
    if not graph.node:
        yield "holds no graph, or is not an ONNX file; export the network with torch.onnx.export"
    if len(graph.node) > MOST_NODES:
        yield f"has {len(graph.node)} nodes; at most {MOST_NODES} are admitted"
    if len(graph.output) > MOST_OUTPUTS:
        yield f"has {len(graph.output)} outputs; at most {MOST_OUTPUTS} are admitted"
    if model.functions or model.training_info:
        yield "defines functions or a training of its own; export the network for inference, with functions inlined"
    domains = {item.domain for item in model.opset_import} | {node.domain for node in graph.node}
    if odd := sorted(domains.difference(DOMAINS)):
        yield f"uses operators of {', '.join(odd)}; only ai.onnx and com.microsoft are admitted"
    for node in graph.node:
        if reason := _objection_to(node):
            yield f"has the operator {node.op_type}, {reason}"
    for tensor in _tensors(graph):
        if tensor.data_location == 1 or tensor.external_data:
            yield (
                f"keeps the tensor {tensor.name!r} in another file, which is never opened; "
                "save it as one file (onnx.save with save_as_external_data=False)"
            )


def _objection_to(node: Any) -> str:
    if node.domain == "com.microsoft" and node.op_type not in MICROSOFT:
        return "which is not admitted"
    if node.op_type in CHANCE:
        return "which gives another result at every run; export the network in evaluation mode"
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        return "which holds a graph of its own (a loop or a branch) and is not admitted; export the network by tracing"
    return ""


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    sparse = list(graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices


def _graph(model: Any, name: str, output: str) -> Graph:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in constants]
    if len(inputs) != 1:
        raise BundleError(f"{name} has {len(inputs)} inputs; it must have one, the image")
    kind, dims = inputs[0].type.tensor_type.elem_type, inputs[0].type.tensor_type.shape.dim
    sizes = [item.dim_value if item.HasField("dim_value") and item.dim_value > 0 else None for item in dims]
    if kind != 1 or len(sizes) != 4:
        raise BundleError(f"the input of {name} is not a float32 image (batch, colours, height, width)")
    layout: Layout | None = "nchw" if sizes[1] == 3 else "nhwc" if sizes[3] == 3 else None
    if layout is None or sizes[0] not in (1, None):
        raise BundleError(f"the input of {name} has the shape {_words(sizes)}; it must be one image with 3 colours")
    outputs = [item.name for item in model.graph.output]
    if (not output and len(outputs) != 1) or (output and output not in outputs):
        raise BundleError(f"{name} has the outputs {', '.join(outputs)}; name the stain with the key output")
    height, width = sizes[2:] if layout == "nchw" else sizes[1:3]
    _relax(model, inputs[0], layout)
    return Graph(model, inputs[0].name, output or outputs[0], layout, (height, width))


def _relax(model: Any, image: Any, layout: str) -> None:
    """Forget the sizes that the file declares, except the colours: most graphs take others, which a run shows."""
    for i, dim in enumerate(image.type.tensor_type.shape.dim):
        if i != (1 if layout == "nchw" else 3):
            dim.dim_param = f"size_{i}"
    del model.graph.value_info[:]
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")


def _words(sizes: list[int | None]) -> str:
    return " × ".join("any" if size is None else str(size) for size in sizes)
