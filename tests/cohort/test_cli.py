"""`wsi-stain cohort` as a user meets it."""

import json
from pathlib import Path

import pytest
from builders.cohorts import names, write_large, write_slides, write_tiff
from distributed import LocalCluster

from wsi_stain.cli import main

QUICK = ["--model", "identity", "--mask", "none", "--set", "convert.grid.block=512"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def address():
    options = {"processes": False, "protocol": "tcp", "dashboard_address": ":0", "worker_dashboard_address": ":0"}
    with LocalCluster(n_workers=1, threads_per_worker=2, silence_logs=50, **options) as cluster:
        yield cluster.scheduler_address


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_run_status_and_qupath(folder, capsys, address):
    slides = write_slides(folder / "slides", 2)
    (slides / "s1.tif").rename(slides / "aside")
    write_large(slides / "s1.tif", 2, 2)
    code, out, err = call(capsys, "cohort", "run", "slides", "-o", "out", *QUICK, "--scheduler", address)
    assert (code, out.strip()) == (0, "out/summary.html"), err
    *events, last = err.splitlines()
    lines = [json.loads(line) for line in events]
    assert [line["event"] for line in lines] == ["begin", "done", "done", "end"]
    assert {line["slide"] for line in lines if line["event"] == "done"} == {"s0", "s1"}
    assert lines[-1]["done"] == lines[-1]["total"] == 2
    assert last == "2 of 2 slides are done, 0 failed"
    code, out, _ = call(capsys, "cohort", "status", "out")
    assert (code, out.strip()) == (0, "2 slides: 2 done")
    code, out, err = call(capsys, "cohort", "qupath", "out")
    assert (code, out.strip()) == (0, "out/qupath.groovy")
    assert "Script editor" in err


def test_a_failure_is_exit_code_1_with_its_reason_and_the_next_step(folder, capsys, address, monkeypatch):
    from wsi_stain.cohort import task
    from wsi_stain.errors import OutputError

    def convert(request, progress):
        raise OutputError("this slide is damaged")

    monkeypatch.setattr(task, "convert", convert)
    write_slides(folder / "slides", 1)
    code, _, err = call(capsys, "cohort", "run", "slides", "-o", "out", *QUICK, "--scheduler", address)
    assert code == 1
    assert "failed: s0: this slide is damaged" in err
    assert "--retry-failed" in err
    code, out, _ = call(capsys, "cohort", "status", "out")
    assert code == 1
    assert out.splitlines() == ["failed       s0: this slide is damaged", "1 slides: 1 failed"]
    code, out, _ = call(capsys, "cohort", "status", "out", "--json")
    assert json.loads(out)["slides"][0]["reason"] == "this slide is damaged"


@pytest.mark.slow
def test_bad_rows_are_a_wrong_call_with_a_table_if_the_user_is_strict(folder, capsys):
    write_tiff(folder / "a.tif")
    (folder / "sheet.csv").write_text("slide\na.tif\nb.tif\nc.tif\n")
    expected = [["line", "3", "b.tif"], ["line", "4", "c.tif"]]
    for command in "run", "plan":
        code, out, err = call(capsys, "cohort", command, "sheet.csv", "-o", "out", "--strict", *QUICK)
        assert (code, out) == (2, "")
        assert [line.split()[:3] for line in err.splitlines()[1:3]] == expected
    code, out, err = call(capsys, "cohort", "plan", "sheet.csv", "-o", "out", *QUICK)
    assert code == 1
    assert "1 slides to do" in out
    assert [line.split()[:3] for line in err.splitlines() if line.startswith("  line")] == expected
    assert names(folder) == ["a.tif", "sheet.csv"]
    code, out, err = call(capsys, "cohort", "run", "sheet.csv", "-o", "out", *QUICK)
    assert code == 1
    assert "1 of 3 slides are done, 2 failed" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shard", "0/3"], "--shard is 0/3"),
        (["--shard", "three"], "write, for example, 3/10"),
        (["--only", "0/3"], "the option --only is now called --shard; the old name still works"),
        (["--only=0/3"], "--shard is 0/3"),
        (["--rows", "a-b"], "write, for example, 3,7-9"),
        (["--rows", "1-9"], "has the slides 1 to 1"),
        (["--rows", "5-3"], "write, for example, 3,7-9"),
        (["--set", "retrys=3"], "did you mean 'retries'"),
        (["--set", "retries=two"], "retries is 'two': it must be a whole number"),
        (["--set", "retries=-1"], "retries is -1: it must be at least 0"),
        (["--set", "split_over=.nan"], "split_over is nan: it must be finite"),
        (["--set", "stop_s=.inf"], "stop_s is inf: it must be finite"),
        (["--cluster", "gone.yaml"], "gone.yaml"),
        (["--cluster", "c.yaml", "--scheduler", "tcp://x:1"], "exclude each other"),
    ],
)
def test_a_wrong_call_is_a_sentence(folder, capsys, arguments, words):
    write_slides(folder / "slides", 1)
    code, _, err = call(capsys, "cohort", "run", "slides", "-o", "out", *QUICK, *arguments)
    assert (code, words in err) == (2, True), err
    assert names(folder) == ["slides"]


def test_a_plan_is_a_table_or_figures(folder, capsys):
    write_slides(folder / "slides", 2)
    code, out, _ = call(capsys, "cohort", "plan", "slides", "-o", "out", *QUICK)
    assert code == 0
    assert "320 × 300 px" in out
    assert "2 slides to do, 0 done" in out
    code, out, _ = call(capsys, "cohort", "plan", "slides", "-o", "out", *QUICK, "--json")
    figures = json.loads(out)
    assert [slide["tissue_tiles"] for slide in figures["slides"]] == [1, 1]
    assert figures["disk_bytes"] < figures["free_disk_bytes"]
    assert names(folder) == ["slides"]


def test_the_dry_run_of_a_conversion_says_the_time_and_the_memory(folder, capsys):
    write_tiff(folder / "a.tif")
    code, out, _ = call(capsys, "convert", "a.tif", "--model", "identity", "--dry-run", "--mask", "none")
    assert code == 0
    assert "time     about 0 s on cpu" in out
    assert "iB at most" in out
    assert names(folder) == ["a.tif"]
