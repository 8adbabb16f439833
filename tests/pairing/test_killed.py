"""A killed run of `pairs make`: the same command ends in the same files, wherever it was killed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from builders.sections import UM, made_pair, rgb
from builders.slides import write_svs

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are of POSIX")

Moment = Callable[[Path, str], bool]
"""Whether it is there: of the folder of the case, and of what was printed."""


def says(text: str) -> Moment:
    return lambda folder, printed: text in printed


def has(pattern: str, n: int) -> Moment:
    return lambda folder, printed: len(list(folder.glob(pattern))) >= n


MOMENTS: dict[str, Moment] = {
    "hashes": says("hashes"),
    "coarse": says("coarse"),
    "fragments": says("fragments"),
    "non-rigid": says("non-rigid"),
    "transform": has("registration.npz", 1),
    "residuals": says("measuring"),
    "first tile": has("he/*.png", 1),
    "middle of a row": has("ihc/*.png", 14),
    "rows": has("tiles.part/row_*.json", 7),
    "report": says("report"),
}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, pair = tmp_path_factory.mktemp("slides"), made_pair(bend_um=100.0)
    he = write_svs(folder / "he.svs", rgb(pair.he), mpp=UM)
    return he, write_svs(folder / "ihc.svs", rgb(pair.ihc), mpp=UM)


@pytest.fixture(scope="module")
def unbroken(slides: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("unbroken") / "case"
    assert ended(slides, folder) == 0
    return contents(folder)


def ended(slides: tuple[Path, Path], folder: Path, moment: Moment | None = None) -> int:
    """The exit code of `pairs make`, which is killed at a moment."""
    printed = folder.with_suffix(".txt")
    command = [sys.executable, "-m", "wsi_stain", "pairs", "make", *map(str, slides), "-o", str(folder)]
    with printed.open("w") as file:
        process = subprocess.Popen(
            [*command, "--mpp", str(UM), "--tile", "64", "--workers", "2"], stderr=file, start_new_session=True
        )
    try:
        while moment and process.poll() is None and not moment(folder, printed.read_text()):
            time.sleep(0.002)
        if moment:
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files but those that tell times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("pairs.json", "report.html")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def kill_at(moments: Iterable[str], slides: tuple[Path, Path], folder: Path, unbroken: dict[str, str]) -> None:
    """Kill one case at each moment in turn, finish it, and compare it with the unbroken one."""
    for name in moments:
        assert ended(slides, folder, MOMENTS[name]) == -signal.SIGKILL, f"it ended before {name}"
        assert not (folder / "pairs.json").exists()
    assert ended(slides, folder) == 0
    assert contents(folder) == unbroken
    assert len([name for name in unbroken if name.startswith("ihc/")]) > 8


@pytest.mark.slow
def test_a_run_that_is_killed_at_ten_moments_ends_in_the_same_files(
    slides: tuple[Path, Path], tmp_path: Path, unbroken: dict[str, str]
) -> None:
    kill_at(MOMENTS, slides, tmp_path / "case", unbroken)
