"""Makes the pairs of many cases, here or on the workers of a cluster, and one table of all their pairs.

One that fails or is refused does not stop the others, and the same call finishes what was interrupted.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsi_stain.cluster import ClusterConfig, explain, open_cluster
from wsi_stain.errors import OutputError, WorkersLost, WsiStainError
from wsi_stain.files.atomic import atomic_write
from wsi_stain.pairing.make import Progress, make
from wsi_stain.pairing.request import PairsRequest
from wsi_stain.pairing.table import COLUMNS, CSV

OURS = ",".join(COLUMNS[:7])
"""Beginning of our tables, also of those of earlier versions."""
NEGATIVES = "he/"
"""Files of rows that `pairs negatives` added; those of cases are in the cases' folders."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """How one case ended."""

    case: str
    verdict: str
    """`register`, `poor`, `refuse`, or `failed`."""
    tiles: int
    message: str


def make_all(
    cases: Sequence[PairsRequest],
    folder: Path,
    progress: Callable[[str], Progress],
    cluster: ClusterConfig | None = None,
) -> list[CaseOutcome]:
    """Make the pairs of all cases, then `pairs.csv` of all of them in `folder`.

    Args:
        cases: of `sheet.requests`.
        folder: of all cases.
        progress: gives the function that shows the stages of a case.
        cluster: whose workers make the cases, one in each thread; by default, they are made here, one after the other.

    Raises:
        OutputError: `pairs.csv` of the folder is another table.
        ConfigError: the cluster cannot be started.
        WorkersLost: its scheduler was lost.
    """
    table = folder / CSV
    if table.exists() and not table.read_text(encoding="utf-8").startswith(OURS):
        raise OutputError(f"{table} is not a table of pairs make; choose another folder with -o")
    if cluster is None:
        outcomes = [_outcome(case, progress(case.case)) for case in cases]
    else:
        outcomes = _on_workers(cluster, cases, progress)
    folder.mkdir(parents=True, exist_ok=True)
    negatives = [row for row in _rows(table) if row["he"].startswith(NEGATIVES)] if table.exists() else []
    atomic_write(table, _table([case for case, o in zip(cases, outcomes, strict=True) if o.tiles], negatives))
    return outcomes


def _table(cases: Iterable[PairsRequest], negatives: Iterable[Mapping[str, str]]) -> str:
    """The pairs of all cases, and the negatives that were added to them."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for case in cases:
        for row in _rows(case.output / CSV):
            writer.writerow({**row, "he": f"{case.case}/{row['he']}", "ihc": f"{case.case}/{row['ihc']}"})
    writer.writerows(negatives)
    return text.getvalue()


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _silent(stage: str, done: int, total: int) -> None:
    """The progress of a case on another machine is not shown."""


def _outcome(case: PairsRequest, progress: Progress = _silent) -> CaseOutcome:
    try:
        result = make(case, progress)
    except (WsiStainError, OSError) as err:
        return CaseOutcome(case.case, "failed", 0, str(err))
    except Exception as err:  # a fault of ours, or of a library: it is recorded, and the other cases continue
        log.exception("case %s", case.case)
        return CaseOutcome(
            case.case, "failed", 0, f"an unexpected error, {type(err).__name__}: {err}; please report it"
        )
    if result.emptiness:
        return CaseOutcome(case.case, "failed", 0, result.emptiness)
    reasons = "; ".join(result.content["registration"]["reasons"])
    return CaseOutcome(case.case, result.verdict, result.content["tiles"], reasons)


def _on_workers(
    cluster: ClusterConfig, cases: Sequence[PairsRequest], progress: Callable[[str], Progress]
) -> list[CaseOutcome]:
    """One Dask task per case: only requests and outcomes travel, so workers must see the same files."""
    from distributed import as_completed

    outcomes: dict[str, CaseOutcome] = {}
    with open_cluster(cluster, lambda: len(cases) - len(outcomes)) as client:
        futures = {client.submit(_outcome, _absolute(case), pure=False): case for case in cases}
        for future in as_completed(list(futures), loop=client.loop):
            outcome = _settled(future, futures[future], cluster)
            outcomes[outcome.case] = outcome
            progress(outcome.case)(outcome.verdict, 0, 0)
    return [outcomes[case.case] for case in cases]


def _absolute(case: PairsRequest) -> PairsRequest:
    """The request for a worker, which has another working directory and runs a case in each of its threads."""
    paths = {name: getattr(case, name).absolute() for name in ("he", "ihc", "output")}
    strata = case.strata.absolute() if case.strata else None
    return replace(case, **paths, strata=strata, workers=case.workers or 0)


def _settled(future: Any, case: PairsRequest, cluster: ClusterConfig) -> CaseOutcome:
    """The outcome of a task; if its workers died, the case has failed.

    Raises:
        WorkersLost: the scheduler no longer has the task.
    """
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        return future.result()
    except KilledWorker as err:
        reason = explain(err, f"case {case.case}", cluster) or (
            f"{err.allowed_failures + 1} workers died while they had this case, the last one at "
            f"{err.last_worker.address}: their memory may be too small, see their logs"
        )
        return CaseOutcome(case.case, "failed", 0, reason)
    except FutureCancelledError as err:
        raise WorkersLost(
            f"the scheduler no longer has the tasks ({err.reason}); re-run the same command to resume"
        ) from err
