"""Which slides the viewer shows: one, or those of a cohort's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wsi_stain.cohort.files import Folder
from wsi_stain.conversion.panel import requests_of
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.errors import SlideError
from wsi_stain.model.bundle import Bundle
from wsi_stain.view.scene import Source


def sources_of(request: ConvertRequest, virtual: Path | None = None, models: tuple[str, ...] = ()) -> list[Source]:
    """The slide of a request, once for each model, or the finished slides of a cohort's folder.

    Args:
        request: names the slide or the folder, and the settings for staining.
        virtual: the finished stain of the slide.
        models: of a panel; by default the model of the request.

    Raises:
        SlideError: the cohort has no finished slide.
    """
    path = request.slide
    if virtual is None and len(models) > 1:
        requests = requests_of(request, models)
        return [Source(f"{path.name} – {Bundle.open(one.model).stain}", one) for one in requests]
    if virtual is not None or not (path / "cohort.json").is_file():
        return [Source(path.name, request, virtual)]
    folder = Folder(path)
    done = [row for row in folder.rows() if folder.state(row).state == "done"]
    if not done:
        raise SlideError(f"{path} has no finished slide; run wsi-stain cohort run, or wsi-stain view of one slide")
    return [
        Source(
            row.slide_id,
            replace(request, slide=row.slide, mpp=row.mpp, image=row.image, z=row.z),
            folder.output(row),
        )
        for row in done
    ]
