"""The ONNX twin of a generator of ours gives its pixels."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.conversions import noise
from builders.runs import restless
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.config.model import GeneratorConfig
from wsi_stain.errors import BundleError
from wsi_stain.model import facts
from wsi_stain.model.bundle import DEFAULT
from wsi_stain.model.graph_export import export_graph
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.inference import TorchGenerator
from wsi_stain.nn.onnx_twin import twin

onnxruntime = pytest.importorskip("onnxruntime")


def stained(graph: bytes, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph)
    x = (pixels.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)
    y = session.run(["stain"], {"he": x})[0][0].transpose(1, 2, 0)
    return np.clip(np.rint((y + 1) * 127.5), 0, 255).astype(np.uint8)


def test_the_twin_gives_the_pixels_of_the_generator() -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(channels=16, blocks=4)).eval()  # wide enough for sums of slices
    restless(generator)
    tile = noise(256, 256)
    expected = TorchGenerator(generator, "cpu")(tile[None])[0]
    assert expected.std() > 1
    assert facts.psnr(stained(twin(generator, 256), tile), expected) > 60


def test_only_generators_of_ours_are_exported(tmp_path: Path) -> None:
    done = CliRunner().invoke(group, ["models", "export", "identity", str(tmp_path / "x.onnx")])
    assert "has no network of ours" in str(done.exception)
    assert not (tmp_path / "x.onnx").exists()


def test_a_missing_extra_and_another_ending_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match=r"x\.txt must end in \.onnx"):
        export_graph(DEFAULT, tmp_path / "x.txt")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BundleError, match=r"install it with pip install 'wsi-stain\[onnx\]'"):
        export_graph(DEFAULT, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
