"""Files in a cohort folder; they are the only record of the state of a cohort.

cohort.json                         rows and settings of the last run
cohort.lock                         process that runs the cohort
<id>.<stain>.ome.tiff, ….run.json   output and record of a finished slide
<id>.account.json                   its figures and thumbnails, for the summary
<id>.running.json                   process that is converting the slide, with a heartbeat
<id>.failed.json                    reason of a failure, with the traceback
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from wsi_stain.cohort.lease import STALE_S, Pulse, looks_late, read_lease
from wsi_stain.cohort.request import CohortRequest, Row
from wsi_stain.config.loader import dump, load
from wsi_stain.errors import InUse, OutputError
from wsi_stain.files import lock, record
from wsi_stain.files.paths import without_home
from wsi_stain.output.canvas import beside

State = Literal["done", "failed", "running", "interrupted", "waiting"]
LOCK = "cohort.lock"


@dataclass(frozen=True, slots=True)
class SlideState:
    """State of a slide."""

    state: State
    reason: str = ""
    """Why it failed, or the process that converts it."""
    is_retried: bool = False
    """Whether the next run retries the failure without --retry-failed: the disk or the memory was too small."""
    progress: float = 0.0
    """Completed share of a running slide, 0–1."""
    seconds: float = 0.0
    """Seconds since the conversion of a running slide started."""


class Folder:
    """A cohort folder.

    Args:
        path: of the folder, which may be missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pulse = Pulse()

    def output(self, row: Row) -> Path:
        """File of the virtual stain."""
        return self.path / row.output

    def account_file(self, row: Row) -> Path:
        """File of the figures and thumbnails of a finished slide."""
        return self.path / f"{row.slide_id}.account.json"

    def running_file(self, row: Row) -> Path:
        """Lease file of the process that converts the slide."""
        return self.path / f"{row.slide_id}.running.json"

    def failed_file(self, row: Row) -> Path:
        """File with the reason of a failure."""
        return self.path / f"{row.slide_id}.failed.json"

    def spool_lock(self, row: Row) -> Path:
        """Lock file of the conversion itself."""
        return beside(self.output(row), ".spool") / "lock"

    def state(self, row: Row) -> SlideState:
        """Read the state of a slide from its files; a silent holder shows at a later look, or after `watch`."""
        lease = read_lease(self.running_file(row))
        if lease and not lock.is_dead(lease):
            where = f"process {lease['pid']} on {lease['host']}"
            if self._pulse.silence_s(lease) < STALE_S:
                return SlideState("running", where, False, lease.get("progress", 0.0), lease.get("seconds", 0.0))
            return SlideState("interrupted", f"{where} sends no heartbeat")
        if self.output(row).exists() and record.path_of(self.output(row)).exists():
            return SlideState("done")
        if failed := record.read(self.failed_file(row)):
            return SlideState("failed", str(failed.get("reason", "")), bool(failed.get("retry")))
        return SlideState("interrupted" if lease or self.spool_lock(row).parent.exists() else "waiting")

    def watch(self, rows: Iterable[Row]) -> None:
        """Look at leases that look late until they have a heartbeat; takes no time if there are none, else ≤ 15 s."""
        leases = {path: read_lease(path) for row in rows if (path := self.running_file(row)).exists()}
        self._pulse.watch(path for path, lease in leases.items() if looks_late(lease) and not lock.is_dead(lease))

    def fail(self, row: Row, reason: str, *, retry: bool = False, attempts: int = 1, trace: str = "") -> None:
        """Record a failure."""
        content = {
            "slide_id": row.slide_id,
            "slide": str(row.slide),
            "reason": reason,
            "retry": retry,
            "attempts": attempts,
            "traceback": trace,
            "host": lock.this_process()["host"],
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        record.write(self.failed_file(row), without_home(content))

    def rows(self) -> list[Row]:
        """The rows of the last run; empty if there was none."""
        content = record.read(self.path / "cohort.json")
        return [load(Row, row) for row in content.get("rows", ())]

    def settings(self) -> dict[str, Any]:
        """Settings of the last run."""
        return record.read(self.path / "cohort.json").get("settings", {})

    def begin(self, request: CohortRequest, rows: Iterable[Row]) -> None:
        """Write `cohort.json`; all jobs of one array write the same rows and settings."""
        content = {
            "sheet": request.sheet,
            "settings": dump(request),
            "versions": record.versions(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": [dump(row) for row in rows],
        }
        record.write(self.path / "cohort.json", content)

    def account(self, row: Row) -> Mapping[str, Any]:
        """Figures and thumbnails of a finished slide; empty if its account is missing."""
        return record.read(self.account_file(row))


@contextmanager
def claimed(request: CohortRequest) -> Generator[Folder]:
    """Create and lock the folder for this run: one run of all slides, or any number of runs of different parts.

    Raises:
        InUse: another run holds the lock.
        OutputError: the folder cannot be created.
    """
    folder = request.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"{folder} cannot be created: {err.strerror}; choose another folder with -o") from err
    mine = folder / (f"cohort.{request.part}.lock" if request.part else LOCK)
    if request.break_stale_locks:
        for path in _others(folder, mine, request.part), [mine]:
            _break_foreign(path)
    with ExitStack() as stack:
        stack.enter_context(_locked(mine))
        # Take our own lock before checking the others: if two runs start at once, at most one continues.
        for other in _others(folder, mine, request.part):
            owner = lock.holder(other)
            if owner is not None and not lock.is_dead(owner):
                raise InUse(_message(folder, other, owner))
        yield Folder(folder)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold a lock; InUse carries the message for a cohort."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.locked(path))
        except InUse as err:
            raise InUse(_message(path.parent, path, lock.holder(path) or {})) from err
        yield


def _message(folder: Path, path: Path, owner: Mapping[str, Any]) -> str:
    return (
        f"another run is using {folder} (process {owner.get('pid')} on {owner.get('host')}); wait until it ends, or, "
        f"if it is no longer running, delete {path} or add --break-stale-locks"
    )


def _others(folder: Path, mine: Path, part: str) -> list[Path]:
    """Locks that conflict with this one: a whole run conflicts with all, a part only with a whole run."""
    locks = [folder / LOCK] if part else sorted(folder.glob("cohort.*lock"))
    return [path for path in locks if path != mine]


def _break_foreign(paths: Iterable[Path]) -> None:
    """Remove locks of other hosts, whose processes cannot be checked from here; locks of this host are checked."""
    for path in paths:
        if lock.is_foreign(lock.holder(path) or {}):
            path.unlink(missing_ok=True)
