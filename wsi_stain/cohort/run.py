"""Runs a cohort: one Dask task per slide; a failed slide does not affect the others, and a re-run resumes.

checked rows → rows to convert → tasks → outcomes → (retry, after a lost worker) → summary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from wsi_stain.cohort.check import checked, examined
from wsi_stain.cohort.coordinator import Coordinator
from wsi_stain.cohort.files import Folder, claimed
from wsi_stain.cohort.pool import cluster_of, pool
from wsi_stain.cohort.progress import CohortResult, Event
from wsi_stain.cohort.request import CohortRequest, Row
from wsi_stain.files.full_disk import reporting_full_disk


def run(request: CohortRequest, on_event: Callable[[Event], None] | None = None) -> CohortResult:
    """Convert the unfinished slides of a cohort; resumes interrupted conversions.

    Args:
        request: of the user. In a script, call this under `if __name__ == "__main__":`, since workers are processes.
        on_event: called with every event.

    Raises:
        ConfigError: the sheet or the settings are invalid, or, with `strict`, a row is; nothing was started.
        InUse: another run is using the folder.
        OutputError: the scheduler was lost; the same call resumes.
    """
    cluster = cluster_of(request)
    rows, reasons = _rows(request)
    with reporting_full_disk(request.folder), claimed(request) as folder:
        folder.begin(request, rows)
        chosen = [row for index, row in enumerate(rows) if request.is_chosen(index)]
        result = CohortResult(len(chosen))
        faulty = [row for row in chosen if row.line in reasons]
        todo = list(_todo(request, folder, [row for row in chosen if row.line not in reasons], result))
        coordinator = Coordinator(request, folder, result, on_event or (lambda _: None))
        coordinator.say("begin", text=f"{len(todo)} slides to do")
        for row in faulty:
            coordinator.refuse(row, reasons[row.line])
        try:
            if todo:
                with pool(cluster, coordinator.demand) as workers:
                    coordinator.convert(todo, workers)
        finally:
            coordinator.tidy()
            coordinator.summarise()
        coordinator.say("end")
        return result


def _rows(request: CohortRequest) -> tuple[list[Row], dict[int, str]]:
    """All rows, and the reasons of those that cannot be converted by line; with `strict`, these are an error."""
    if request.strict:
        return checked(request), {}
    result = examined(request)
    return result.rows, result.reasons


def _todo(request: CohortRequest, folder: Folder, rows: Iterable[Row], result: CohortResult) -> Iterator[Row]:
    """Yield the rows to convert; count the others in `result`."""
    for row in rows:
        state = folder.state(row)
        if state.state == "done" and folder.account_file(row).exists():
            result.done += 1
        elif state.state == "failed" and not (request.retry_failed or state.is_retried):
            result.failed[row.slide_id] = state.reason
        else:
            yield row
