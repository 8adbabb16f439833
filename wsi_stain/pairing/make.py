"""From two slides to training pairs: register, judge, cut, report.

    slides → pictures → registration → registration.npz → residuals → tiles → pairs.csv → report.html → pairs.json

`pairs.json` is written last: the mark of a complete case. A run that was stopped continues where it was, and ends in
the same files.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain import __version__
from wsi_stain.errors import OutputError, SlideError
from wsi_stain.files import record
from wsi_stain.files.atomic import SUFFIX, atomic_write
from wsi_stain.files.lock import locked
from wsi_stain.files.paths import without_home
from wsi_stain.pairing import report
from wsi_stain.pairing.case import JSON, TRANSFORM
from wsi_stain.pairing.cut import WORK, CutJob, PairTile, cut
from wsi_stain.pairing.exports import landmarks, qupath_affine
from wsi_stain.pairing.request import PairsRequest
from wsi_stain.pairing.resample import Warped
from wsi_stain.pairing.sources import check_order, check_origin, check_scales
from wsi_stain.pairing.splits import split_of
from wsi_stain.pairing.strata import strata_of
from wsi_stain.pairing.table import CSV, table
from wsi_stain.registration.evidence import Evidence
from wsi_stain.registration.images import Picture, background_in, picture, working_um
from wsi_stain.registration.register import Registration, register
from wsi_stain.registration.residuals import Residuals, residuals
from wsi_stain.registration.transform import Transform
from wsi_stain.registration.verdict import SURE
from wsi_stain.slide.files import digest
from wsi_stain.slide.slide import Slide

REGISTRATION, HTML = "registration.json", "report.html"
Progress = Callable[[str, int, int], None]
"""Called with a stage, and how much of it is done."""


@dataclass(frozen=True, eq=False)
class PairsResult:
    """The finished case."""

    folder: Path
    content: dict[str, Any]
    """Content of `pairs.json`."""

    @property
    def verdict(self) -> str:
        """`register`, `poor`, or `refuse`."""
        return self.content["registration"]["verdict"]

    @property
    def emptiness(self) -> str:
        """Why slides that correspond gave no tile; "" if there are some, or if the slides do not correspond."""
        if self.verdict == "refuse" or self.content["tiles"]:
            return ""
        reasons = ", ".join(f"{reason} ({n})" for reason, n in self.content["left_out"].items())
        return f"no tile is left: {reasons or 'the slide is smaller than a tile'}; see {self.folder / HTML}"


def make(request: PairsRequest, progress: Progress = lambda stage, done, total: None) -> PairsResult:
    """Make the pairs of one case, or finish a case that was begun.

    Raises:
        OutputError: the folder holds a case of other slides or settings, or files that are not of a case.
        WsiStainError: a slide cannot be used.
    """
    _refuse_foreign(request.output)
    request.output.mkdir(parents=True, exist_ok=True)
    with (
        locked(request.output / ".lock"),
        Slide.open(request.he, mpp=request.he_mpp) as he,
        Slide.open(request.ihc, mpp=request.ihc_mpp) as ihc,
    ):
        progress("reading the slides' hashes", 0, 0)
        check_scales(request, he, ihc)
        strata_of(request.strata)  # an unreadable file is an error before the registration
        facts = {"he": _facts(he), "ihc": _facts(ihc)}
        check_origin(he, ihc, facts["he"]["sha256"] == facts["ihc"]["sha256"])
        existing = _existing(request, facts)
        if existing is not None:
            return PairsResult(request.output, existing)
        check_order(request, he, ihc)
        return _make(request, he, ihc, facts, progress)


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder whose tiles or table are not those of a case: they would be replaced.

    Raises:
        OutputError: it is one, or a file.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose a folder with -o")
    if any((folder / name).exists() for name in (JSON, REGISTRATION, TRANSFORM)):
        return
    foreign = [name for name in ("he", "ihc", CSV, HTML) if (folder / name).exists()]
    if foreign:
        raise OutputError(f"{folder} already contains {foreign[0]}, of another origin; choose another folder")


def _make(request: PairsRequest, he: Slide, ihc: Slide, facts: dict[str, Any], progress: Progress) -> PairsResult:
    start = time.perf_counter()
    um = working_um(he, ihc)
    progress("reading the slides", 0, 0)
    pictures = picture(he, um), picture(ihc, um)
    for slide, shown in zip((he, ihc), pictures, strict=True):
        if not shown.tissue.any():
            raise SlideError(f"{slide.path.name} shows no tissue; pass another slide")
    outcome, transform = _registered(request, *pictures, facts, progress)
    tiles, left_out, off = list[PairTile](), Counter[str](), None
    if outcome["verdict"] != "refuse":
        progress("measuring what is left", 0, 0)
        off = residuals(*pictures, transform)
        job = CutJob(
            request,
            he.at(request.mpp),
            Warped(ihc.at(request.mpp), transform, request.mpp, drifts=True),
            off,
            (background_in(he.thumbnail(1024)), background_in(ihc.thumbnail(1024))),
        )
        del pictures  # 100 MB that the tiles do not need
        for name, text in landmarks(transform, off, he.mpp, ihc.mpp).items():
            atomic_write(request.output / f"landmarks_{name}.geojson", text)
        for number, piece in enumerate(transform.pieces, start=1):
            atomic_write(request.output / f"qupath_affine_{number}.txt", qupath_affine(piece.affine, he.mpp, ihc.mpp))
        tiles, left_out = cut(job, lambda done, total: progress("rows of tiles", done, total))
    splits = split_of(sorted({tile.column for tile in tiles}), request.split)
    kept = [tile for tile in tiles if tile.column in splits]
    left_out["buffer between splits"] = len(tiles) - len(kept)
    _clean(request, kept)
    atomic_write(request.output / CSV, table(request, kept, splits, he))
    content = {
        "wsi_stain": __version__,
        "request": _settings(request),
        "slides": facts,
        "paths": without_home({"he": str(request.he.absolute()), "ihc": str(request.ihc.absolute())}),
        "registration": outcome,
        "residuals": _figures(off),
        "tiles": len(kept),
        "splits": dict(Counter(splits[tile.column] for tile in kept)),
        "left_out": {reason: n for reason, n in sorted(left_out.items()) if n},
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_bytes": record.peak_memory_bytes(),
        "versions": record.versions(),
    }
    progress("writing the report", 0, 0)
    page = report.html(content, he, ihc, transform, off, [(tile.name, tile) for tile in kept], request.output)
    atomic_write(request.output / HTML, page)
    shutil.rmtree(request.output / WORK, ignore_errors=True)
    record.write(request.output / JSON, content)
    return PairsResult(request.output, content)


def _registered(
    request: PairsRequest, he: Picture, ihc: Picture, facts: dict[str, Any], progress: Progress
) -> tuple[dict[str, Any], Transform]:
    """The outcome and the transform: those of an earlier, interrupted run, or new ones."""
    folder = request.output
    mark = {"slides": facts, "request": _settings(request), "wsi_stain": __version__}
    earlier = record.read(folder / REGISTRATION)
    if earlier and all(earlier.get(key) == json.loads(json.dumps(value)) for key, value in mark.items()):
        with suppress(OutputError):  # damaged: register again
            return earlier["outcome"], Transform.load(folder / TRANSFORM)
    (folder / REGISTRATION).unlink(missing_ok=True)  # first: it vouches for the transform, which is replaced next
    shutil.rmtree(folder / WORK, ignore_errors=True)  # tiles of other settings
    result = register(he, ihc, one_affine=request.one_affine, on_stage=lambda stage: progress(stage, 0, 0))
    transform = Transform(result.pieces, result.fragments, facts)
    transform.save(folder / TRANSFORM)
    outcome = _outcome(result, he.um)
    record.write(folder / REGISTRATION, mark | {"outcome": outcome})
    return outcome, transform


def _outcome(result: Registration, um: float) -> dict[str, Any]:
    def told(evidence: Evidence) -> dict[str, float]:
        return {"share": round(evidence.share, 3), "deviations": round(evidence.deviations, 2)}

    return {
        "verdict": result.verdict.word,
        "reasons": list(result.verdict.reasons),
        "tissue": round(result.verdict.tissue, 4),
        "working_um": um,
        "needed_deviations": SURE,
        "hypotheses": [
            {
                "found_by": candidate.hypothesis.by,
                "degrees": round(candidate.affine.angle, 2),
                "mirrored": candidate.affine.is_mirrored,
                "scales": [round(scale, 4) for scale in candidate.affine.scales],
                **told(candidate.evidence),
            }
            for candidate in result.candidates
        ],
        "parts": [told(evidence) for evidence in result.evidences],
        "pieces": [
            {
                "degrees": round(piece.affine.angle, 2),
                "mirrored": piece.affine.is_mirrored,
                "scales": [round(scale, 4) for scale in piece.affine.scales],
                "affine_um": piece.affine.matrix.round(6).tolist(),
                "smallest_jacobian": round(float(piece.field.jacobian.min()), 3),
            }
            for piece in result.pieces
        ],
    }


def _existing(request: PairsRequest, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The content of a finished case of the same slides and settings.

    Raises:
        OutputError: the finished case has others.
    """
    content = record.read(request.output / JSON)
    if not content:
        return None
    if content.get("slides") == facts and content.get("request") == json.loads(json.dumps(_settings(request))):
        return content
    raise OutputError(
        f"{request.output} holds pairs of other slides or settings; choose another folder with -o, or remove it"
    )


def _settings(request: PairsRequest) -> dict[str, Any]:
    """What decides the tiles; neither paths nor the number of threads do."""
    names = (
        *("mpp", "tile", "patient", "split", "one_affine"),
        *("most_misaligned_um", "least_confidence", "least_tissue"),
    )
    settings = {"case": request.name} | {name: getattr(request, name) for name in names}
    return settings | ({"strata_sha256": digest(request.strata)[0]} if request.strata else {})


def _facts(slide: Slide) -> dict[str, Any]:
    sha256, _ = digest(slide.path)
    return {
        "name": slide.path.name,
        "sha256": sha256,
        "mpp": slide.mpp,
        "width": slide.size.w,
        "height": slide.size.h,
    }


def _figures(off: Residuals | None) -> dict[str, float]:
    """Figures of the windows after the transform."""
    if off is None or not len(off.points) or not off.holds.any():
        return {}
    holding = off.off_um[off.holds]
    return {
        "windows": len(off.points),
        "holding": round(float(off.holds.mean()), 4),
        "median_um": round(float(np.median(holding)), 2),
        "p90_um": round(float(np.percentile(holding, 90)), 2),
    }


def _clean(request: PairsRequest, kept: Sequence[PairTile]) -> None:
    """Remove the tiles of buffers, and of a run with other settings, and what killed runs left half written."""
    names = {tile.name for tile in kept}
    for folder in (request.output, request.output / "he", request.output / "ihc"):
        for path in folder.glob(f".*{SUFFIX}"):
            path.unlink()
    for side in ("he", "ihc"):
        for path in (request.output / side).glob("*.png"):
            if re.fullmatch(r"\d{4,}_\d{4,}\.png", path.name) and path.name not in names:
                path.unlink()
