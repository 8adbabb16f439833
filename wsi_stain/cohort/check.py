"""Check every row before a run starts: slides open, scales fit, models and masks exist."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from wsi_stain.cohort import sheet
from wsi_stain.cohort.files import Folder
from wsi_stain.cohort.request import CohortRequest, Row, named, to_convert
from wsi_stain.cohort.sheet import RowProblem
from wsi_stain.config.convert import ConvertConfig
from wsi_stain.config.loader import dump, load
from wsi_stain.conversion.refusal import check_source
from wsi_stain.errors import BundleError, ConfigError, MaskError, WsiStainError
from wsi_stain.files import record
from wsi_stain.files.paths import without_home
from wsi_stain.model.bundle import Bundle
from wsi_stain.slide.files import digest, size_of, stamp
from wsi_stain.slide.slide import Slide
from wsi_stain.tissue.mask import from_geojson

THREADS = 8
"""Threads that open slides; opening is limited by the file system, not by the CPU."""
NOTHING = "; nothing was started"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Examined:
    """The rows of a sheet, and what is wrong with some of them."""

    rows: list[Row]
    """All rows; faulty ones too, with names for their records."""
    problems: list[RowProblem]
    """Sorted by line; a row may have several."""

    @property
    def reasons(self) -> dict[int, str]:
        """Why a row cannot be converted, by its line."""
        reasons: dict[int, str] = {}
        for problem in self.problems:
            before = reasons.get(problem.line)
            reasons[problem.line] = f"{before}; {problem.message}" if before else problem.message
        return reasons


def examined(request: CohortRequest) -> Examined:
    """Read the sheet, name the outputs, and open every slide that this run converts.

    Rows that failed in an earlier run are not opened: a bad slide fails on its own, with its reason.

    Raises:
        ConfigError: the sheet or the default model cannot be used, or finished outputs were made with other settings.
    """
    rows, problems = sheet.read(request)
    bundles, wrong = _bundles(rows, request.model)
    problems += wrong
    rows = [_named(row, bundles) for row in rows]
    _check_chosen(request, rows)
    rows, wrong = _opened(request, rows, bundles, frozenset(problem.line for problem in problems))
    problems = sorted([*problems, *wrong], key=lambda problem: problem.line)
    if any(problem.stops_all for problem in problems):
        raise ConfigError(sheet.table(problems, request.sheet, NOTHING))
    return Examined([replace(row, slide=row.slide.absolute()) for row in rows], problems)  # workers run elsewhere


def checked(request: CohortRequest) -> list[Row]:
    """The rows of a sheet without problems; see `examined`.

    Raises:
        ConfigError: the message is a table of all problems.
    """
    result = examined(request)
    if result.problems:
        raise ConfigError(sheet.table(result.problems, request.sheet, NOTHING))
    return result.rows


def _named(row: Row, bundles: Mapping[str, Bundle]) -> Row:
    return named(row, bundles[row.model]) if row.model in bundles else replace(row, output=f"{row.slide_id}.ome.tiff")


def _bundles(rows: list[Row], default: str) -> tuple[dict[str, Bundle], list[RowProblem]]:
    """The model bundles of the rows by name, and the problems of rows whose model cannot be opened."""
    bundles: dict[str, Bundle] = {}
    problems = []
    for name in dict.fromkeys(row.model for row in rows):
        try:
            bundles[name] = Bundle.open(name)
        except (BundleError, ConfigError) as err:
            if name == default:
                raise ConfigError(f"{err}; nothing was started") from err
            problems += [RowProblem(row.line, str(row.slide), str(err)) for row in rows if row.model == name]
    return bundles, problems


def _check_chosen(request: CohortRequest, rows: list[Row]) -> None:
    beyond = [n for n in request.rows if not 1 <= n <= len(rows)]
    if beyond:
        raise ConfigError(f"--rows contains {beyond[0]}, but {request.sheet} has the slides 1 to {len(rows)}")


def _opened(
    request: CohortRequest, rows: list[Row], bundles: Mapping[str, Bundle], wrong: frozenset[int]
) -> tuple[list[Row], list[RowProblem]]:
    """The rows with their sizes, and the problems of rows whose lines are not yet in `wrong`."""
    folder = Folder(request.folder)
    known = {row.slide_id: row.pixels for row in folder.rows()}

    def look(index: int, row: Row) -> tuple[Row, list[RowProblem]]:
        row = replace(row, pixels=known.get(row.slide_id, 0))
        if row.line in wrong or not request.is_chosen(index):
            return row, []
        state = folder.state(row).state
        if state == "done" and (changed := _changed(request, row, bundles[row.model])):
            what = f"{row.output} was converted with different inputs or settings ({', '.join(changed)})"
            message = f"{what}; choose another folder with -o, or delete it"
            return row, [RowProblem(row.line, str(row.slide), message, stops_all=True)]
        if state in ("done", "failed"):
            return row, []
        return _look(request, row, bundles[row.model])

    with ThreadPoolExecutor(THREADS) as threads:
        results = list(threads.map(look, range(len(rows)), rows))
    return [row for row, _ in results], [problem for _, problems in results for problem in problems]


def _changed(request: CohortRequest, row: Row, bundle: Bundle) -> list[str]:
    """Keys in which a finished output differs from what this run would convert; only a touched slide is hashed."""
    run = record.read(record.path_of(request.folder / row.output))
    settings = dump(to_convert(request, row))
    arguments = run.get("arguments", {})
    config = dump(load(ConvertConfig, run.get("config") or {}))  # in today's form: keys were added and renamed
    previous = {**arguments, "config": config, **run.get("fingerprint", {})}
    previous |= {key: arguments.get(key) for key in ("image", "z")}  # as asked for; the fingerprint has what was chosen
    expected = {key: settings[key] for key in ("mask", "precision", "allow_upsampling", "config", "image", "z")}
    expected["mask"], previous["mask"] = without_home(expected["mask"]), without_home(previous.get("mask"))
    expected |= {"model": bundle.name, "model_sha256": bundle.sha256}
    if settings["precision"] == "auto":
        del expected["precision"]  # it depended on the device of that run
    if row.slide.exists():
        expected["source_bytes"] = size_of(row.slide)
        is_touched = run.get("source_stamp") not in (None, "", stamp(row.slide))
        if is_touched and expected["source_bytes"] == previous.get("source_bytes"):
            expected["source_sha256"] = digest(row.slide)[0]  # it may only have been copied
    return [key for key, value in json.loads(json.dumps(expected)).items() if previous.get(key) != value]


def _look(request: CohortRequest, row: Row, bundle: Bundle) -> tuple[Row, list[RowProblem]]:
    """The row with its size, and its problems."""
    problem = partial(RowProblem, row.line, str(row.slide))
    try:
        with Slide.open(row.slide, mpp=row.mpp, image=row.image, z=row.z) as slide:
            check_source(slide, allow_virtual=request.allow_virtual, force_brightfield=request.force_brightfield)
            view = slide.at(bundle.mpp, allow_upsampling=request.allow_upsampling)
            problems = [problem(text) for text in _mask_problems(row, slide)]
    except (WsiStainError, OSError) as err:
        return row, [problem(str(err))]
    except Exception as err:  # one slide must not stop the others, whatever a reader does with it
        log.debug("%s cannot be examined", row.slide, exc_info=True)
        return row, [problem(f"{type(err).__name__}: {err}; this is a bug: please report it")]
    return replace(row, pixels=view.size.h * view.size.w), problems


def _mask_problems(row: Row, slide: Slide) -> Iterator[str]:
    if row.mask not in ("auto", "none"):
        try:
            from_geojson(Path(row.mask), slide.size)
        except MaskError as err:
            yield str(err)
