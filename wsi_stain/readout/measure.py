"""`measure()`: the read-out of one slide, from a request to a folder of tables, maps and a page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain import __version__
from wsi_stain.cluster.workers import Workers
from wsi_stain.config.loader import dump
from wsi_stain.errors import OutputError
from wsi_stain.files import record
from wsi_stain.files.atomic import atomic_write
from wsi_stain.geometry import Box
from wsi_stain.readout import maps, page, tables
from wsi_stain.readout.blocks import SCALES_UM
from wsi_stain.readout.interval import Interval, interval_of
from wsi_stain.readout.request import MeasureRequest
from wsi_stain.readout.survey import ReadoutSurvey
from wsi_stain.readout.work import ROW, Sums, TaskReport, measure_task

JSON, HTML, GEOJSON, MAP, REGIONS = "measure.json", "report.html", "heatmap.geojson", "map.ome.tiff", "regions"
MAP_UM, HEAT_UM = 64, 128
"""Blocks of the OME-TIFF and of the page's map, and of the GeoJSON."""


@dataclass(frozen=True, slots=True)
class ReadoutResult:
    """Result of a read-out."""

    folder: Path
    content: Mapping[str, Any]
    """Content of `measure.json`."""


class _Total:
    """What the tasks have found so far."""

    def __init__(self, regions: int) -> None:
        self.slide = Sums()
        self.regions = [Sums() for _ in range(regions)]
        self.unreadable: list[Box] = []
        self._rows: dict[int, list[np.ndarray]] = {um: [] for um in SCALES_UM}

    def add(self, report: TaskReport) -> None:
        self.slide += report.slide
        for number, sums in report.regions.items():
            self.regions[number] += sums
        for um, rows in report.rows.items():
            self._rows[um].append(rows)
        self.unreadable += report.unreadable

    def rows(self, um: int) -> np.ndarray:
        """`ROW` (n,) in reading order; the order in which tasks end must not show."""
        rows = np.concatenate([np.empty(0, ROW), *self._rows[um]])
        return rows[np.lexsort((rows["x0"], rows["y0"]))]


def measure(request: MeasureRequest, progress: Callable[[int, int], None] = lambda done, total: None) -> ReadoutResult:
    """Measure the DAB and the hematoxylin of a slide of any size, real or virtual.

    Memory bound: a few blocks of pixels per thread, and about 1 kB per block of 256 µm with tissue.

    Args:
        request: what to measure.
        progress: called with the number of tasks done and their total.

    Raises:
        OutputError: the folder already has a read-out.
        WsiStainError: the slide, the masks or the settings cannot be used.
    """
    start = time.perf_counter()
    folder = request.output or Path(f"{request.slide.name}.measure")
    if (folder / JSON).exists():
        raise OutputError(f"{folder} already has a read-out ({JSON}); choose another folder with -o, or remove it")
    survey = ReadoutSurvey.of(request)
    try:
        total = _run(survey, progress)
    finally:
        survey.close()
    folder.mkdir(parents=True, exist_ok=True)
    content = _write(folder, survey, total, interval_of(survey))
    content["seconds"] = round(time.perf_counter() - start, 2)
    content["peak_memory_bytes"] = record.peak_memory_bytes()
    record.write(folder / JSON, content)  # last: the mark of a complete read-out
    return ReadoutResult(folder, content)


def _run(survey: ReadoutSurvey, progress: Callable[[int, int], None]) -> _Total:
    job = survey.job
    total, tasks, done = _Total(len(job.regions)), list(job.grid.tasks()), 0

    def on_report(report: TaskReport) -> None:
        nonlocal done
        total.add(report)
        done += 1
        progress(done, len(tasks))

    with Workers(survey.request.workers) as workers:
        workers.run(_Task(survey), tasks, on_report)
    return total


class _Task:
    """`measure_task` with its job bound: named for Dask's keys."""

    def __init__(self, survey: ReadoutSurvey) -> None:
        self._job = survey.job
        self.__name__ = measure_task.__name__

    def __call__(self, box: Box) -> TaskReport:
        return measure_task(self._job, box)


def _write(folder: Path, survey: ReadoutSurvey, total: _Total, interval: Interval) -> dict[str, Any]:
    job = survey.job
    assert job.view.mpp, "a read-out has a pixel size"
    scale, mpp = float(job.view.scale), job.view.mpp
    columns = {
        um: tables.block_columns(total.rows(um), um, scale=scale, mpp=mpp, interval=interval) for um in SCALES_UM
    }
    for um, blocks in columns.items():
        tables.write_table(folder, f"blocks_{um}um", blocks)
    areas = {
        "slide": tables.figures(total.slide, mpp) | _bounds(total.slide, interval, columns[HEAT_UM]),
        **{r.name: tables.figures(s, mpp) for r, s in zip(job.regions, total.regions, strict=True)},
    }
    names = list(areas["slide"])
    by_name = {name: np.array([row.get(name, math.nan) for row in areas.values()]) for name in names}
    tables.write_table(folder, REGIONS, {"region": np.array(list(areas)), **by_name})
    maps.write_geojson(folder / GEOJSON, columns[HEAT_UM])
    maps.write_tiff(folder / MAP, columns[MAP_UM], job.grid, MAP_UM, scale)
    content = _content(survey, total, areas, interval)
    picture = maps.raster(columns[MAP_UM], "dab_positive", job.grid, MAP_UM, scale)
    atomic_write(folder / HTML, page.html(content, survey.thumbnail, picture))
    return content


def _bounds(sums: Sums, interval: Interval, blocks: tables.Columns) -> dict[str, float]:
    """The bounds of the slide's share: the means of those of its blocks, weighted by tissue."""
    if "dab_positive_low" not in blocks or not sums.tissue_px:
        return {}
    weights = blocks["tissue_um2"] / blocks["tissue_um2"].sum()
    return {name: float(blocks[name] @ weights) for name in maps.BOUNDS}


def _content(
    survey: ReadoutSurvey, total: _Total, areas: Mapping[str, Mapping[str, float]], interval: Interval
) -> dict[str, Any]:
    """Content of `measure.json`: the figures, and every setting that they depend on."""
    stains, view = survey.job.stains, survey.job.view
    finite = {name: {k: v if math.isfinite(v) else None for k, v in row.items()} for name, row in areas.items()}
    return {
        "wsi_stain": __version__,
        "slide": survey.request.slide.name,
        "virtual": survey.is_virtual,
        "origin": dict(survey.origin),
        "figures": finite,
        "interval": interval.text,
        "settings": {
            "mpp": view.mpp,
            "level0_px_per_px": str(view.scale),
            "size_px": list(view.size),
            "background": list(stains.background),
            "hematoxylin": list(stains.hematoxylin),
            "dab": list(stains.dab),
            "third": None if stains.third is None else list(stains.third),
            "thresholds": dump(survey.request.thresholds),
            "blocks_um": list(SCALES_UM),
            "chosen": dict(survey.facts),
        },
        "unreadable": [[b.x0, b.y0, b.size.w, b.size.h] for b in sorted(total.unreadable)],
        "versions": record.versions(),
    }
