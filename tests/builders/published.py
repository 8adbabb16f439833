"""Weight files and graphs as other people's training codes save them, with small networks of fixed random weights."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from wsi_stain.config.network import NetworkConfig
from wsi_stain.nn.published import build

VALUES = {"values_in": (-1.0, 1.0), "values_out": (-1.0, 1.0), "colours": "rgb"}


def config_of(kind="resnet-6", **fields):
    """A network of width 4."""
    return NetworkConfig(**{"kind": kind, "multiple": 4, "norm": "instance", "width": 4, **VALUES, **fields})


def network_of(config, seed=0):
    """The network with random weights that are large enough for its output to vary."""
    torch.manual_seed(seed)
    network = build(config).eval()
    with torch.no_grad():
        for name, part in network.named_modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                fan = part.weight[0].numel() if isinstance(part, nn.Conv2d) else part.weight[:, 0].numel() / 4
                nn.init.normal_(part.weight, std=(1.5 / fan) ** 0.5)
            elif isinstance(part, nn.BatchNorm2d | nn.InstanceNorm2d) and part.weight is not None:
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, std=0.3)
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.running_mean, std=0.2)
                nn.init.uniform_(part.running_var, 0.5, 2.0)
            assert name is not None
    return network


def save(network: nn.Module, file: Path, side: int = 64) -> Path:
    """A state dict, or an ONNX file exported for one image of one size, as `torch.onnx.export` does by default."""
    if file.suffix == ".onnx":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network, (torch.zeros(1, 3, side, side),), file, dynamo=False, input_names=["x"], output_names=["y"]
            )
    else:
        torch.save(network.state_dict(), file)
    return file


def graph_of(*nodes, opset=21, output="y", domains=(), **constants):
    """An ONNX model of one image `x` of any size to `y`."""
    sides = ["n", 3, "h", "w"]
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", "c", "h", "w"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


node = helper.make_node
serialized = onnx.ModelProto.SerializeToString
