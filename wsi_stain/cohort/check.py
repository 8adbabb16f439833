"""Every row is looked at before anything runs: slides open, scales fit, models and masks are there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from wsi_stain.cohort import sheet
from wsi_stain.cohort.files import Folder
from wsi_stain.cohort.request import CohortRequest, Row, named, to_convert
from wsi_stain.cohort.sheet import Problem
from wsi_stain.config.loader import dump
from wsi_stain.errors import BundleError, ConfigError, MaskError, SlideError
from wsi_stain.files import record
from wsi_stain.model.bundle import Bundle
from wsi_stain.slide.slide import Slide
from wsi_stain.tissue.mask import from_geojson

THREADS = 8
"""Opening a slide waits for the file system more than for the processor."""


def checked(request: CohortRequest) -> list[Row]:
    """The rows of the sheet with their outputs' names; those that this run has to do are known to open.

    Rows that failed in an earlier run are not opened: a slide that is bad fails alone, with its reason.

    Raises:
        ConfigError: a table of everything that is wrong.
    """
    rows, problems = sheet.read(request)
    bundles, wrong = _bundles(rows)
    problems += wrong
    rows = [named(row, bundles[row.model]) if row.model in bundles else row for row in rows]
    _check_chosen(request, rows)
    rows, wrong = _opened(request, rows, bundles, frozenset(problem.line for problem in problems))
    if problems := problems + wrong:
        raise ConfigError(sheet.table(sorted(problems, key=lambda p: p.line), request.sheet))
    return [replace(row, slide=row.slide.absolute()) for row in rows]  # others ask, and link, from elsewhere


def _bundles(rows: list[Row]) -> tuple[dict[str, Bundle], list[Problem]]:
    """The models that rows name."""
    found: dict[str, Bundle] = {}
    problems = []
    for name in dict.fromkeys(row.model for row in rows):
        try:
            found[name] = Bundle.open(name)
        except (BundleError, ConfigError) as err:
            problems += [Problem(row.line, str(row.slide), str(err)) for row in rows if row.model == name]
    return found, problems


def _check_chosen(request: CohortRequest, rows: list[Row]) -> None:
    beyond = [n for n in request.rows if not 1 <= n <= len(rows)]
    if beyond:
        raise ConfigError(f"--rows names {beyond[0]}: {request.sheet} has the slides 1 to {len(rows)}")


def _opened(
    request: CohortRequest, rows: list[Row], bundles: Mapping[str, Bundle], wrong: frozenset[int]
) -> tuple[list[Row], list[Problem]]:
    """The rows with their sizes, and what is wrong with those that are not on the lines `wrong` already."""
    folder = Folder(request.folder)
    known = {row.slide_id: row.pixels for row in folder.rows()}

    def look(index: int, row: Row) -> tuple[Row, list[Problem]]:
        row = replace(row, pixels=known.get(row.slide_id, 0))
        if row.line in wrong or not request.is_chosen(index):
            return row, []
        state = folder.state(row).state
        if state == "done" and (changed := _changed(request, row, bundles[row.model])):
            where = f"{row.output} was made otherwise ({', '.join(changed)})"
            return row, [Problem(row.line, str(row.slide), f"{where}: choose another folder with -o, or remove it")]
        if state in ("done", "failed"):
            return row, []
        return _look(request, row, bundles[row.model])

    with ThreadPoolExecutor(THREADS) as threads:
        looked = list(threads.map(look, range(len(rows)), rows))
    return [row for row, _ in looked], [problem for _, found in looked for problem in found]


def _changed(request: CohortRequest, row: Row, bundle: Bundle) -> list[str]:
    """What differs between a finished output and what would be made now, as far as can be told without hashing."""
    run = record.read(record.path_of(request.folder / row.output))
    asked = dump(to_convert(request, row))
    made = {**run.get("arguments", {}), "config": run.get("config"), **run.get("fingerprint", {})}
    wanted = {key: asked[key] for key in ("mask", "precision", "allow_upsampling", "config")}
    wanted |= {"model": bundle.name, "model_sha256": bundle.sha256}
    if asked["precision"] == "auto":
        del wanted["precision"]  # whatever suited the device then
    if row.slide.is_file():
        wanted["source_bytes"] = row.slide.stat().st_size
    return [key for key, value in json.loads(json.dumps(wanted)).items() if made.get(key) != value]


def _look(request: CohortRequest, row: Row, bundle: Bundle) -> tuple[Row, list[Problem]]:
    """The row with its size, or what is wrong with it."""
    problem = partial(Problem, row.line, str(row.slide))
    try:
        with Slide.open(row.slide, mpp=row.mpp) as slide:
            view = slide.at(bundle.mpp, allow_upsampling=request.allow_upsampling)
            problems = [problem(text) for text in _mask_problems(row, slide)]
    except (SlideError, OSError) as err:
        return row, [problem(str(err))]
    return replace(row, pixels=view.size.h * view.size.w), problems


def _mask_problems(row: Row, slide: Slide) -> Iterator[str]:
    if row.mask not in ("auto", "none"):
        try:
            from_geojson(Path(row.mask), slide.size)
        except MaskError as err:
            yield str(err)
