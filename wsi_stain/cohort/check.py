"""Check every row before a run starts: slides open, scales fit, models and masks exist."""

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
"""Threads that open slides; opening is limited by the file system, not by the CPU."""


def checked(request: CohortRequest) -> list[Row]:
    """Read the sheet, name the outputs, and open every slide that this run converts.

    Rows that failed in an earlier run are not opened: a bad slide fails on its own, with its reason.

    Raises:
        ConfigError: the message is a table of all problems.
    """
    rows, problems = sheet.read(request)
    bundles, wrong = _bundles(rows)
    problems += wrong
    rows = [named(row, bundles[row.model]) if row.model in bundles else row for row in rows]
    _check_chosen(request, rows)
    rows, wrong = _opened(request, rows, bundles, frozenset(problem.line for problem in problems))
    if problems := problems + wrong:
        raise ConfigError(sheet.table(sorted(problems, key=lambda p: p.line), request.sheet))
    return [replace(row, slide=row.slide.absolute()) for row in rows]  # workers have other working folders


def _bundles(rows: list[Row]) -> tuple[dict[str, Bundle], list[Problem]]:
    """The model bundles of the rows by name, and the problems of rows whose model cannot be opened."""
    bundles: dict[str, Bundle] = {}
    problems = []
    for name in dict.fromkeys(row.model for row in rows):
        try:
            bundles[name] = Bundle.open(name)
        except (BundleError, ConfigError) as err:
            problems += [Problem(row.line, str(row.slide), str(err)) for row in rows if row.model == name]
    return bundles, problems


def _check_chosen(request: CohortRequest, rows: list[Row]) -> None:
    beyond = [n for n in request.rows if not 1 <= n <= len(rows)]
    if beyond:
        raise ConfigError(f"--rows contains {beyond[0]}, but {request.sheet} has the slides 1 to {len(rows)}")


def _opened(
    request: CohortRequest, rows: list[Row], bundles: Mapping[str, Bundle], wrong: frozenset[int]
) -> tuple[list[Row], list[Problem]]:
    """The rows with their sizes, and the problems of rows whose lines are not yet in `wrong`."""
    folder = Folder(request.folder)
    known = {row.slide_id: row.pixels for row in folder.rows()}

    def look(index: int, row: Row) -> tuple[Row, list[Problem]]:
        row = replace(row, pixels=known.get(row.slide_id, 0))
        if row.line in wrong or not request.is_chosen(index):
            return row, []
        state = folder.state(row).state
        if state == "done" and (changed := _changed(request, row, bundles[row.model])):
            what = f"{row.output} was converted with different inputs or settings ({', '.join(changed)})"
            return row, [Problem(row.line, str(row.slide), f"{what}; choose another folder with -o, or delete it")]
        if state in ("done", "failed"):
            return row, []
        return _look(request, row, bundles[row.model])

    with ThreadPoolExecutor(THREADS) as threads:
        results = list(threads.map(look, range(len(rows)), rows))
    return [row for row, _ in results], [problem for _, problems in results for problem in problems]


def _changed(request: CohortRequest, row: Row, bundle: Bundle) -> list[str]:
    """Keys in which a finished output differs from what this run would convert; the slide is not hashed."""
    run = record.read(record.path_of(request.folder / row.output))
    settings = dump(to_convert(request, row))
    previous = {**run.get("arguments", {}), "config": run.get("config"), **run.get("fingerprint", {})}
    expected = {key: settings[key] for key in ("mask", "precision", "allow_upsampling", "config")}
    expected |= {"model": bundle.name, "model_sha256": bundle.sha256}
    if settings["precision"] == "auto":
        del expected["precision"]  # it depended on the device of that run
    if row.slide.is_file():
        expected["source_bytes"] = row.slide.stat().st_size
    return [key for key, value in json.loads(json.dumps(expected)).items() if previous.get(key) != value]


def _look(request: CohortRequest, row: Row, bundle: Bundle) -> tuple[Row, list[Problem]]:
    """The row with its size, and its problems."""
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
