"""The cohort's workflow: which slides it plans, what it refuses, and a real run of three slides."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wsi_stain.output import ometiff

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pipelines" / "snakemake"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("snakemake") is None, reason="snakemake is not installed: pip install '.[experiments]'"
    ),
]


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a working folder, with the `wsi-stain` of this checkout, and Snakemake's cache out of the home folder."""
    script = folder / "bin" / "wsi-stain"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m wsi_stain "$@"\n')
    script.chmod(0o755)
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    mine = {"PATH": path, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "snakemake", "-s", str(FOLDER / "Snakefile"), "--cores", "2", *arguments]
    text = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, cwd=folder, env=os.environ | mine, check=False, **text)


def write_sheet(folder: Path, *lines: str, header: str = "slide,slide_id,mpp") -> None:
    (folder / "sheet.csv").write_text("\n".join([header, *lines]), encoding="utf-8")


def test_every_slide_is_one_job_with_its_place_in_the_sheet(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "slides" / f"{name}.svs").touch()
    write_sheet(tmp_path, "slides/a.svs,,", ",,", "slides/b.svs,patient 2,0.25", "slides/c.svs,,")
    result = snakemake(tmp_path, "-n", "-p", "--config", "device=cpu", "options=[--model, identity]", "results=out")
    assert result.returncode == 0, result.stdout
    commands = re.findall(
        r"wsi-stain cohort run (.+) -o out --rows (\d+) .*--device cpu --model identity", result.stdout
    )
    assert sorted(commands) == [("sheet.csv", "1"), ("sheet.csv", "2"), ("sheet.csv", "3")]
    assert set(re.findall(r"output: (.+)", result.stdout)) == {
        "out/a.account.json",
        "out/patient 2.account.json",
        "out/c.account.json",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("slides/a.svs,a,wide", r"line 3 of sheet.csv cannot be used: .*'wide' does not match"),
        ("slides/b.svs,first,", r"line 3 of sheet.csv cannot be used: slide_id 'first' is not unique"),
    ],
)
def test_a_wrong_row_stops_the_plan_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    write_sheet(tmp_path, "slides/a.svs,first,", line)
    result = snakemake(tmp_path, "-n")
    assert result.returncode == 1
    assert re.search(message, result.stdout, re.DOTALL), result.stdout


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"slide_id": "a"}, "'slide' is a required property"),
        ({"slide": "a.svs", "slide_id": "../a"}, "'../a' does not match"),
        ({"slide": "a.svs", "z": "-1"}, "'-1' does not match"),
        ({"slide": "a.svs", "mpp": "-1"}, "'-1' does not match"),
        ({"slide": "a.svs", "mask": "mask.png"}, "'mask.png' does not match"),
    ],
)
def test_the_schema_refuses(row: dict, message: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = yaml.safe_load((FOLDER / "sheet.schema.yaml").read_text(encoding="utf-8"))
    good = {"slide": "a b.svs", "slide_id": "patient 2.ä", "mpp": ".25", "model": "m", "mask": "roi.geojson.gz"}
    good |= {"image": "0", "z": "2", "a column of the user": "kept"}
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(row, schema)


def test_the_schema_of_the_sheet_knows_the_columns_of_the_command() -> None:
    from wsi_stain.cohort.sheet import COLUMNS

    schema = yaml.safe_load((FOLDER / "sheet.schema.yaml").read_text(encoding="utf-8"))
    assert set(schema["properties"]) == set(COLUMNS)


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_profiles_name_only_what_the_workflow_has(profile: str) -> None:
    actual = yaml.safe_load((FOLDER / "profiles" / profile / "config.yaml").read_text(encoding="utf-8"))
    assert actual["keep-going"] is actual["rerun-incomplete"] is True
    text = (FOLDER / "profiles" / profile / "config.yaml").read_text(encoding="utf-8")
    rules = set(re.findall(r"^rule (\w+):", (FOLDER / "Snakefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"#   (\w+): \{", text)) <= rules


def test_three_real_slides_are_converted_and_not_converted_again(data: Path, tmp_path: Path) -> None:
    names = {"jpeg": "wsic_CMU-1-Small-Region.jpeg.tiff", "webp": "wsic_CMU-1-Small-Region.webp.tiff"}
    lines = [f"{data / 'slides' / name},{slide_id},0.499" for slide_id, name in names.items()]
    write_sheet(tmp_path, *lines, f"{data / 'slides' / 'wsic_XYC-half-mpp.tiff'},small,0.5")
    profile = ("--profile", str(FOLDER / "profiles" / "local"))
    arguments = (*profile, "--config", "device=cpu", "options=[--model, identity]")
    result = snakemake(tmp_path, *arguments)
    assert result.returncode == 0, result.stdout
    for slide_id in ("jpeg", "webp", "small"):
        (output,) = (tmp_path / "stained").glob(f"{slide_id}.*.ome.tiff")
        assert [p for p in ometiff.problems(output) if p.severity == "error"] == []
    assert (tmp_path / "stained" / "summary.html").stat().st_size > 1000
    assert "Nothing to be done" in snakemake(tmp_path, *arguments).stdout
