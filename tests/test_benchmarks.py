"""The benchmarks still run, and their arithmetic is right; their figures are nobody's test."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from builders.slides import tissue, write_svs

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def helper():
    spec = importlib.util.spec_from_file_location("side_by_side", BENCHMARKS / "side_by_side.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["side_by_side"] = module
    spec.loader.exec_module(module)
    return module


def output_of(script: str, *arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_ratios_are_of_neighbours_and_candidates_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    tools, order = helper(), []

    def once(name):
        order.append(name)
        return tools.Run(seconds=len(order), cpu_s=0.0)

    runs = tools.alternate({"a": lambda: once("a"), "b": lambda: once("b")}, rounds=2)
    assert order == ["a", "b"] * 3  # the first round warms up
    assert [[run.seconds for run in actual] for actual in runs.values()] == [[3, 5], [4, 6]]
    assert tools.ratios([3, 5], [4, 4]) == "0.75 / 1.00"
    assert "round 2 of 2" in capsys.readouterr().err


def test_a_table_is_markdown() -> None:
    assert helper().table(["", "s"], [["a", 1]]) == "|  | s |\n| --- | --- |\n| a | 1 |"


@pytest.mark.slow
def test_scaling_measures_sizes_and_draws(tmp_path: Path) -> None:
    arguments = ("--folder", tmp_path, "--gigapixels", 0.002, "--workers", 1, "--picture", tmp_path / "p.png")
    lines = output_of("scaling.py", *arguments).splitlines()
    assert lines[-1].startswith("| 0.00 | 1 |")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_resume_ends_in_the_same_bytes(tmp_path: Path) -> None:
    slide = write_svs(tmp_path / "s.svs", tissue(2600, 2600))
    slow = ("--set", "grid.block=512", "--set", "grid.tile=32")  # so that it can be stopped halfway
    options = (*slow, "--model", "identity", "--mask", "none", "--workers", 1)
    errors = output_of("resume.py", "--slide", slide, "--folder", tmp_path, "--rounds", 1, "--stops", 1, *options)
    assert "36 blocks" in errors
    assert "Same bytes: yes" in errors


@pytest.mark.slow
def test_engine_generates_the_same_tiles_alone(tmp_path: Path) -> None:
    slide = write_svs(tmp_path / "s.svs", tissue(1200, 1300))
    options = ("--model", "identity", "--mask", "none", "--rounds", 1)
    errors = output_of("engine.py", "--slide", slide, "--folder", tmp_path, *options)
    assert "9 tissue tiles" in errors
    assert "generated / tissue tiles 1.000" in errors
