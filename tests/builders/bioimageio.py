"""Bundles of ours that are small enough to export, and model folders of BioImage.IO with small graphs."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from builders.published import graph_of, node, serialized
from builders.runs import restless
from wsi_stain.config.loader import dump
from wsi_stain.config.model import BundleConfig, BundleInput, BundleOutput, BundleWeights, GeneratorConfig
from wsi_stain.nn.generator import Generator

CARD = """# small

**RESEARCH USE ONLY.** See [the site](https://example.org), [the docs](../../docs/models.md), ![a field](field.jpg)

## Held-out figures

r = 0.5
"""


def own_bundle(folder: Path, *, licence="CC-BY-4.0", card=CARD, mpp=0.5) -> Path:
    """A generator with random weights and attention windows of 16 px; tiles of 64 px."""
    torch.manual_seed(0)
    config = GeneratorConfig(channels=4, blocks=4, window=16, head="stain")
    folder.mkdir(parents=True)
    save_file(restless(Generator(config)).state_dict(), folder / "generator.safetensors")
    digest = hashlib.sha256((folder / "generator.safetensors").read_bytes()).hexdigest()
    spec = BundleConfig(
        name=folder.name,
        version="1.2.0",
        generator=config,
        input=BundleInput("H&E", mpp, tile=64, overlap=32),
        output=BundleOutput("HER2", (240, 241, 242)),
        weights=BundleWeights("generator.safetensors", digest),
        licence=licence,
    )
    (folder / "bundle.yaml").write_text(yaml.safe_dump(dump(spec)))
    (folder / "card.md").write_text(card)
    return folder


def axes(size, names=("red", "green", "blue"), **more):
    space = [{"type": "space", "id": name, "unit": "micrometer", "scale": 0.5, "size": size, **more} for name in "yx"]
    return [{"type": "batch"}, {"type": "channel", "channel_names": list(names)}, *space]


DESCRIPTION = {
    "type": "model",
    "format_version": "0.5.4",
    "name": "a blur",
    "license": "MIT",
    "version": "2.1.0",
    "inputs": [
        {
            "id": "x",
            "axes": axes({"min": 32, "step": 16}, concatenable=True),
            "data": {"type": "uint8"},
            "preprocessing": [{"id": "scale_linear", "kwargs": {"gain": 1 / 255, "offset": 0}}],
        }
    ],
    "outputs": [
        {
            "id": "y",
            "axes": axes({"tensor_id": "x", "axis_id": "y"}, halo=8),
            "data": {"type": "float32", "range": [0.0, 1.0]},
        }
    ],
    "weights": {"onnx": {"source": "weights.onnx", "opset_version": 21}},
    "config": {"other_tool": {"a": 1}},
}


def blur() -> bytes:
    """A mean over 7 × 7 px of each colour, for images of any size."""
    kernel = np.zeros((3, 3, 7, 7), np.float32)
    for c in range(3):
        kernel[c, c] = 1 / 49
    return serialized(graph_of(node("Conv", ["x", "kernel"], ["y"], pads=[3] * 4), kernel=kernel))


def foreign(folder: Path, change=None, graph: bytes | None = None) -> Path:
    """A model folder that another tool wrote; `change` edits its description."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.onnx").write_bytes(data := blur() if graph is None else graph)
    description = copy.deepcopy(DESCRIPTION)
    description["weights"]["onnx"]["sha256"] = hashlib.sha256(data).hexdigest()
    if change:
        change(description)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(description))
    return folder
