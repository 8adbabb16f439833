"""Every command in the documentation can be typed as it stands: its options exist, and cheap ones are executed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import tifffile
import yaml
from builders.cohorts import write_tiff
from builders.documents import PAGES, ROOT, call_of, inline_code, name_of, shell_lines
from builders.hdab import paint, patchwork
from builders.pairs import placed_pairs
from click.testing import CliRunner, Result

from wsi_stain import phantom
from wsi_stain.cli import COMMANDS, group
from wsi_stain.cohort.request import CohortConfig
from wsi_stain.config.convert import ConvertConfig
from wsi_stain.config.loader import load
from wsi_stain.config.train import TrainConfig
from wsi_stain.geometry import Size

CALLS = [
    pytest.param(call, id=f"{name_of(page)}: {' '.join(call)[:60]}")
    for page in PAGES
    for words in shell_lines(page.read_text(encoding="utf-8"))
    if (call := call_of(words)) is not None
]
"""The arguments of every call of wsi-stain in a block of code."""

SETTINGS = {
    "convert": ConvertConfig,
    "view": ConvertConfig,
    "cohort": CohortConfig,
    "pretrain": TrainConfig,
    "train": TrainConfig,
}
"""What `--set` of a command changes."""

NOT_EXECUTED = {
    r"^(view|.*--view)\b": "serves until Ctrl-C; tests/view drives it",
    r"models/|reports/|runs/first|latest_net": "needs a training, or a file from elsewhere",
    r"--cluster|--scheduler": "needs a cluster; tests/cluster and tests/cohort have one",
    r"^models check he2cam52-small": "tests/test_repo.py checks the shipped models",
    r"^evaluate --model he2cam52": "takes long; tests/evaluate",
    r"--limit|my.svs": "an example of a form",
    r"^pairs (make|check|warp|negatives)": "needs two real slides; tests/pairing and tests/pairs",
    r"^evaluate --slides": "needs a registered case; tests/evaluate/test_slides.py",
    r"^seams ": "its exit code is that of the slides; tests/conversion/test_examine.py",
    r"hf:|\.onnx|--bioimageio": "needs a network; tests/model",
}
"""Calls that are only parsed, and why."""


def parsed(arguments: list[str]) -> click.Context:
    """The context of the innermost command; raises what click would print for a wrong call."""
    context = group.make_context("wsi-stain", list(arguments))
    command: click.Command = group
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(name, rest, parent=context)
    return context


@pytest.mark.parametrize("call", CALLS)
def test_every_call_has_commands_and_options_that_exist(call: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    context = parsed([argument.replace("…", "slide.svs") for argument in call if argument != "..."])
    kind = SETTINGS.get(call[0])
    if kind and (context.params.get("settings") or context.params.get("config_file")):
        assert load(kind, context.params.get("config_file"), context.params.get("settings") or ())
    for name in ("cluster", "config_file"):
        file = context.params.get(name)
        assert file is None or file.exists() or "configs" not in str(file), f"{file} does not exist"


def options_of(command: click.Command) -> set[str]:
    """Every option of a command and of its sub-commands."""
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            sub = command.get_command(context, name)
            assert sub is not None
            names |= options_of(sub)
    return {name for name in names if name.startswith("-")} | {"--help", "--version"}


FOREIGN_OPTIONS = {
    "--array",
    "--configfile",
    "--cores",
    "--cpus-per-task",
    "--eval",
    "--gres",
    "--build-arg",
    "--entrypoint",
    "--isolation",
    "--user",
    "--userns",
    "--set-threads",
    "--unlock",
}
"""Options of other programs (sbatch, snakemake, pix2pix) that pages name."""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_and_commands_named_in_sentences_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if name_of(page).startswith(("CHANGELOG", "benchmarks")):
        pytest.skip("it also names what was removed, or options of scripts")
    known = options_of(group)
    for code in inline_code(text):
        if match := re.match(r"wsi-stain ([a-z]+)", code):
            assert match[1] in COMMANDS, code
        if code.startswith(("wsi-stain", "--")):
            unknown = set(re.findall(r"(?<!\S)--[a-z][\w-]*", code)) - known - FOREIGN_OPTIONS
            assert unknown == set(), code


# Execution -----------------------------------------------------------------------------------------------------------


def geojson(path: Path, side: int) -> None:
    """A square of level-0 px in the format of QuPath."""
    ring = [[0, 0], [side, 0], [side, side], [0, side], [0, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}), encoding="utf-8")


def copier(folder: Path) -> None:
    """A bundle with the name and the stain of the default model that copies its input: commands are tested here."""
    folder.mkdir()
    spec: dict[str, Any] = {"name": folder.name, "version": "2.0.0", "licence": "Apache-2.0"}
    spec |= {"generator": {"kind": "identity"}, "output": {"stain": "CAM5.2"}}
    spec["input"] = {"stain": "H&E", "mpp": 1.0, "tile": 512, "overlap": 0}
    shutil.copy(ROOT / "models" / folder.name / "card.md", folder)
    (folder / "bundle.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that the pages name."""
    folder = tmp_path_factory.mktemp("desk")
    copier(folder / "he2cam52-small")
    phantom.write_slide(folder / "slide.svs", size=Size(6400, 10240), mpp=0.5)
    write_tiff(folder / "slide.tif", mpp=None)
    (folder / "slides").mkdir()
    write_tiff(folder / "slides" / "a.svs")
    write_tiff(folder / "slides" / "b.tif", seed=1, mpp=None)
    (folder / "sheet.csv").write_text("slide,slide_id,mpp\nslides/a.svs,patient-1,\nslides/b.tif,patient-2,0.25\n")
    image = paint(*patchwork(600, 800))
    resolution = {"resolution": (20000, 20000), "resolutionunit": "centimeter"}
    tifffile.imwrite(folder / "ihc.svs", np.ascontiguousarray(image), tile=(256, 256), photometric="rgb", **resolution)
    geojson(folder / "roi.geojson", 4000)
    geojson(folder / "tumour.geojson", 400)
    placed_pairs(folder / "my" / "pairs")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def reason_not_to_execute(call: list[str]) -> str | None:
    return next((why for rule, why in NOT_EXECUTED.items() if re.search(rule, " ".join(call))), None)


def execute(call: list[str]) -> Result:
    return CliRunner().invoke(group, call, catch_exceptions=False)


EXECUTED = list(dict.fromkeys(tuple(p.values[0]) for p in CALLS if not reason_not_to_execute(list(p.values[0]))))
"""Each once, in the order of the pages."""


def test_most_calls_are_executed() -> None:
    calls = {tuple(p.values[0]) for p in CALLS}
    assert len(calls) >= 40
    assert len(EXECUTED) >= 20


@pytest.mark.slow
def test_commands_of_the_pages_run_as_they_stand(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In one test: later commands use the files of earlier ones.
    monkeypatch.chdir(desk)
    assert execute(["convert", "slide.svs"]).exit_code == 0
    assert (desk / "slide.cam52.ome.tiff").exists()
    assert execute(["demo"]).exit_code == 0
    first = ("cohort run", "pairs")  # `status` and `qupath` need the folder that `run` writes
    for call in sorted(EXECUTED, key=lambda call: not " ".join(call).startswith(first)):
        if call[0] == "convert":  # the pages show alternatives
            for file in desk.glob("slide.*.*"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        result = execute(list(call))
        allowed = (0, 1) if call[0] == "pairs" else (0,)  # drawn pairs are flagged, rightly
        assert result.exit_code in allowed, f"wsi-stain {' '.join(call)}: {result.output[-800:]}"
