"""What the files in a cohort's folder say: the only truth about what is done.

cohort.json                         the rows and settings of the last run
cohort.lock                         who runs it
<id>.<stain>.ome.tiff, ….run.json   a finished slide
<id>.account.json                   its figures and thumbnails, for the summary
<id>.running.json                   who converts it right now, with a heartbeat
<id>.failed.json                    why it failed, with the traceback
"""

from __future__ import annotations

import errno
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from wsi_stain.cohort.lease import STALE_S, read_lease
from wsi_stain.cohort.request import CohortRequest, Row
from wsi_stain.config.loader import dump, load
from wsi_stain.errors import InUse, NoRoom, OutputError
from wsi_stain.files import lock, record
from wsi_stain.output.canvas import beside

State = Literal["done", "failed", "running", "interrupted", "waiting"]
LOCK = "cohort.lock"


@dataclass(frozen=True, slots=True)
class SlideState:
    """What became of a slide."""

    state: State
    reason: str = ""
    """Why it failed, or where it runs."""
    again: bool = False
    """A failure that the next run tries again by itself: the disk or the memory was too small."""
    share: float = 0.0
    """How much of a running slide is painted, 0–1."""
    seconds: float = 0.0
    """Since a running slide was begun."""


class Folder:
    """The folder of a cohort.

    Args:
        path: need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def output(self, row: Row) -> Path:
        """The virtual stain."""
        return self.path / row.output

    def account_file(self, row: Row) -> Path:
        """Figures and thumbnails of a finished slide."""
        return self.path / f"{row.slide_id}.account.json"

    def running_file(self, row: Row) -> Path:
        """The lease of whoever converts the slide."""
        return self.path / f"{row.slide_id}.running.json"

    def failed_file(self, row: Row) -> Path:
        """Why it failed."""
        return self.path / f"{row.slide_id}.failed.json"

    def spool_lock(self, row: Row) -> Path:
        """The lock of the conversion itself."""
        return beside(self.output(row), ".spool") / "lock"

    def state(self, row: Row) -> SlideState:
        """What became of a slide, by its files."""
        lease = read_lease(self.running_file(row))
        if lease and not lock.is_dead(lease):
            late = time.time() - lease.get("beat", 0.0)
            where = f"process {lease['pid']} on {lease['host']}"
            if late < STALE_S:
                return SlideState("running", where, False, lease.get("share", 0.0), lease.get("seconds", 0.0))
            return SlideState("interrupted", f"{where} has not been heard of for {late:.0f} s")
        if self.output(row).exists() and record.path_of(self.output(row)).exists():
            return SlideState("done")
        if failed := record.read(self.failed_file(row)):
            return SlideState("failed", str(failed.get("reason", "")), bool(failed.get("again")))
        return SlideState("interrupted" if lease or self.spool_lock(row).parent.exists() else "waiting")

    def fail(self, row: Row, reason: str, *, again: bool = False, attempts: int = 1, trace: str = "") -> None:
        """Record a failure."""
        content = {
            "slide_id": row.slide_id,
            "slide": str(row.slide),
            "reason": reason,
            "again": again,
            "attempts": attempts,
            "traceback": trace,
            "host": lock.this_process()["host"],
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        record.write(self.failed_file(row), content)

    def rows(self) -> list[Row]:
        """The rows of the last run; empty where there was none."""
        content = record.read(self.path / "cohort.json")
        return [load(Row, row) for row in content.get("rows", ())]

    def settings(self) -> dict[str, Any]:
        """How the last run was called."""
        return record.read(self.path / "cohort.json").get("settings", {})

    def begin(self, request: CohortRequest, rows: Iterable[Row]) -> None:
        """Write what this run is about; jobs of one array write the same."""
        content = {
            "sheet": request.sheet,
            "settings": dump(request),
            "versions": record.versions(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": [dump(row) for row in rows],
        }
        record.write(self.path / "cohort.json", content)

    def account(self, row: Row) -> Mapping[str, Any]:
        """Figures and thumbnails of a finished slide; empty where there are none."""
        return record.read(self.account_file(row))


@contextmanager
def claimed(request: CohortRequest) -> Generator[Folder]:
    """The folder, held for this run: one run of all slides, or any number of runs of different shares.

    Raises:
        InUse: another run holds it.
        OutputError: it cannot be made.
    """
    folder = request.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"{folder} cannot be made: {err.strerror}; write elsewhere with -o") from err
    mine = folder / (f"cohort.{request.share}.lock" if request.share else LOCK)
    if request.take_over:
        for path in _others(folder, mine, request.share), [mine]:
            _break_foreign(path)
    with ExitStack() as stack:
        stack.enter_context(_said(mine))
        # First the own lock, then a look at the others: of two that start at once, at most one goes on.
        for other in _others(folder, mine, request.share):
            owner = lock.holder(other)
            if owner is not None and not lock.is_dead(owner):
                raise InUse(_sentence(folder, other, owner))
        yield Folder(folder)


@contextmanager
def told_when_full(folder: Path) -> Generator[None]:
    """Turns the system's words for a full disk into a sentence."""
    try:
        yield
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoRoom(f"the disk of {folder} is full: free some space and re-run the same command to resume") from err


@contextmanager
def _said(path: Path) -> Generator[None]:
    """The lock, with a sentence for a cohort."""
    try:
        lock.take(path, lock.this_process())
    except InUse as err:
        raise InUse(_sentence(path.parent, path, lock.holder(path) or {})) from err
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _sentence(folder: Path, path: Path, owner: Mapping[str, Any]) -> str:
    return (
        f"another run works in {folder} (process {owner.get('pid')} on {owner.get('host')}): wait for it, or, "
        f"if you know that it is no longer running, delete {path} or add --take-over"
    )


def _others(folder: Path, mine: Path, share: str) -> list[Path]:
    """Locks that exclude this one: a whole run excludes all, a share only the whole run."""
    found = [folder / LOCK] if share else sorted(folder.glob("cohort.*lock"))
    return [path for path in found if path != mine]


def _break_foreign(paths: Iterable[Path]) -> None:
    """Remove locks of other hosts: whether they still run only the user knows. This host's own are looked into."""
    for path in paths:
        owner = lock.holder(path)
        if owner and owner.get("host") != lock.this_process()["host"]:
            path.unlink(missing_ok=True)
