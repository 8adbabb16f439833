"""Starts or resumes the canvas of a job: what a conversion and a virtual slide do before they paint the first block."""

from __future__ import annotations

import io

from wsi_stain.conversion.job import Job
from wsi_stain.conversion.survey import Survey
from wsi_stain.conversion.view import save_mask
from wsi_stain.files import record
from wsi_stain.output.canvas import Canvas


def begin(survey: Survey, job: Job, canvas: Canvas) -> list[dict[str, str]]:
    """Start or resume a canvas, and write the mask into its folder for the workers; only for the holder of its lock.

    Returns:
        The versions of all runs that worked on it, this one last.

    Raises:
        OutputError: the folder holds blocks of other settings.
    """
    canvas.begin(job.fingerprint.as_dict(), survey.request.restart)
    if survey.request.restart:
        # If this run is killed and repeated without --restart, the old output must not count as finished.
        record.path_of(job.output).unlink(missing_ok=True)
    versions = record.note_versions(canvas.store.folder / "versions.json")
    if job.mask is not None:
        buffer = io.BytesIO()
        save_mask(survey.mask, buffer)
        canvas.store.write(job.mask.name, buffer.getvalue())
    return versions
