"""Commands import only what they use."""

import json
import subprocess
import sys

import pytest
from builders.conversions import noise, write_slide

HEAVY = {"torch", "matplotlib", "tensorboard", "torchmetrics", "pytorch_wavelets"}
SCRIPT = """
import json, sys
from wsi_stain.cli import main
try:
    main(sys.argv[2:])
except SystemExit as end:
    assert end.code == 0, end.code
finally:
    print(json.dumps([name for name in sys.argv[1].split(",") if name in sys.modules]))
"""


def imported(code: str, *arguments: str) -> list[str]:
    """The heavy libraries that a Python process has imported at its end."""
    command = [sys.executable, "-c", code, ",".join(sorted(HEAVY)), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def test_the_package_and_its_help_import_no_heavy_library() -> None:
    listing = "import wsi_stain, json, sys; print(json.dumps([n for n in sys.argv[1].split(',') if n in sys.modules]))"
    assert imported(listing) == []
    assert imported(SCRIPT, "--help") == []


@pytest.mark.parametrize("command", ["train", "pretrain", "evaluate", "convert"])
def test_help_of_a_command_imports_no_heavy_library(command: str) -> None:
    assert imported(SCRIPT, command, "--help") == []


def test_slides_are_described_and_copied_without_torch(tmp_path) -> None:
    slide = write_slide(tmp_path / "s.tif", noise(300, 300))
    assert imported(SCRIPT, "info", str(slide)) == []
    output = tmp_path / "x.ome.tiff"
    assert imported(SCRIPT, "convert", str(slide), "--model", "identity", "--mask", "none", "-o", str(output)) == []
    assert imported(SCRIPT, "validate", str(output)) == []


@pytest.mark.slow
def test_a_network_converts_without_what_only_training_and_reports_use(tmp_path) -> None:
    slide = write_slide(tmp_path / "s.tif", noise(300, 300))
    command = ("convert", str(slide), "--mpp", "1", "--mask", "none", "-o", str(tmp_path / "x.ome.tiff"))
    libraries = imported(SCRIPT, *command, "--set", "grid.tile=256", "--set", "certificate=false")
    assert "torch" in libraries
    assert not {"matplotlib", "tensorboard", "torchmetrics"} & set(libraries)
