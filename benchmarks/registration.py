"""Registers the pairs of slides whose landmarks are known, and prints a table of the errors in µm.

    python benchmarks/registration.py DATA2 [CASE …] [--thumbs] [--refuse]

DATA2 is the folder that WSI_STAIN_DATA2 names; beside it, `data` holds the H&E of pbpath1_cam52. The landmarks only
judge: nothing is fitted to them. `--refuse` registers slides that do not belong together, and prints
how many are refused, and the standard deviations of the best hypothesis, of which 5 are needed.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import cv2
import numpy as np

from wsi_stain.files.record import peak_memory_bytes
from wsi_stain.registration.affine import Affine
from wsi_stain.registration.images import Picture, picture, working_um
from wsi_stain.registration.register import Registration, register
from wsi_stain.registration.transform import Transform
from wsi_stain.slide.slide import Slide

CASES = ("pbpath1_cam52", "lnmet_oscar", "bs25_synaptophysin", "eas25_cmv_pale", "hpylori_ihc_REFUSE")
STRANGERS = (
    ("lnmet_oscar", "eas25_cmv_pale"),
    ("bs25_synaptophysin", "hpylori_ihc_REFUSE"),
    ("eas25_cmv_pale", "bs25_synaptophysin"),
    ("hpylori_ihc_REFUSE", "lnmet_oscar"),
)
"""Cases of which the H&E of the first and the IHC of the second are of different people."""
THUMB_UM = 5.0
"""µm per px that is assumed of the small pictures, which record none."""


def main() -> None:
    """Print the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data2", type=Path)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--thumbs", action="store_true")
    parser.add_argument("--refuse", action="store_true")
    arguments = parser.parse_args()
    print("case | rigid | affine | non-rigid (90 %) | verdict | seconds | peak MiB", flush=True)
    for case in arguments.cases or CASES:
        _case(arguments.data2, case)
    if arguments.thumbs:
        _thumbs(arguments.data2 / "thumbs_landmarks")
    if arguments.refuse:
        _refusals(arguments.data2)


def _slides(data2: Path, case: str) -> tuple[Slide, Slide]:
    folder = data2 / "pairs" / case
    if case == "pbpath1_cam52":
        he = Slide.open(data2.parent / "data" / "slides" / "whole_pancreas_HE.tif", mpp=1.0)
        return he, Slide.open(folder / "IHC_band_blanked.tif")
    return Slide.open(folder / "HE.tif"), Slide.open(folder / "IHC.tif")


def _case(data2: Path, case: str) -> None:
    start = time.perf_counter()
    he, ihc = _slides(data2, case)
    um = working_um(he, ihc)
    result = register(picture(he, um), picture(ihc, um))
    seconds = time.perf_counter() - start
    path = data2 / "pairs" / case / "landmarks.csv"
    errors = _errors(result, *_landmarks(path, he.mpp, ihc.mpp)) if path.exists() else ""
    print(f"{case} | {errors} | {result.verdict.word} | {seconds:.0f} | {peak_memory_bytes() >> 20}", flush=True)


def _landmarks(path: Path, he_mpp: float, ihc_mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of both slides in µm, float64 (n, 2) each."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    he, ihc = (np.array([[float(r[f"{s}_y"]), float(r[f"{s}_x"])] for r in rows]) for s in ("he", "ihc"))
    return (he + 0.5) * he_mpp, (ihc + 0.5) * ihc_mpp


def _errors(result: Registration, he: np.ndarray, ihc: np.ndarray) -> str:
    """Median errors after the rigid, the affine and the whole transform, with the 90th percentile of the last."""
    owner = result.fragments(he)
    rigid, affine = np.empty(len(he)), np.empty(len(he))
    for number, piece in enumerate(result.pieces):
        mine = owner == number
        affine[mine] = np.linalg.norm(piece.affine(he[mine]) - ihc[mine], axis=1)
    whole = result.candidates[0].hypothesis.affine
    rigid = np.linalg.norm(whole(he) - ihc, axis=1)
    total = np.linalg.norm(Transform(result.pieces, result.fragments, {})(he) - ihc, axis=1)
    return f"{np.median(rigid):.0f} | {np.median(affine):.0f} | {np.median(total):.0f} ({np.percentile(total, 90):.0f})"


def _thumbs(folder: Path) -> None:
    """Median errors in px of the small pictures, beside the best affine map to the landmarks."""
    for path in sorted(folder.glob("*_landmarks_*.csv")):
        case, names = path.stem.split("_landmarks_")
        first, second = names.split("_")
        start = time.perf_counter()
        slides = [_Thumb(folder / f"{case}_{name}.jpg") for name in (first, second)]
        he, ihc = _landmarks(path, THUMB_UM, THUMB_UM)
        result = register(*(slide.picture() for slide in slides))
        bound = np.linalg.norm(Affine.fitted(he, ihc)(he) - ihc, axis=1)
        total = np.linalg.norm(Transform(result.pieces, result.fragments, {})(he) - ihc, axis=1)
        relative = np.median(total) / THUMB_UM / np.hypot(*slides[1].size)
        print(
            f"{case} {second} | {np.median(total) / THUMB_UM:.1f} px | best affine to the landmarks "
            f"{np.median(bound) / THUMB_UM:.1f} px | relative {100 * relative:.2f} % | {result.verdict.word} | "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )


class _Thumb:
    def __init__(self, path: Path) -> None:
        self._slide = Slide.open(path, mpp=THUMB_UM)
        self.size = self._slide.size

    def picture(self) -> Picture:
        return picture(self._slide, THUMB_UM)


def _refusals(data2: Path) -> None:
    """Slides that do not belong together: the case to refuse, turned by ten random angles, also mirrored; strangers."""
    he, ihc = _slides(data2, "hpylori_ihc_REFUSE")
    first, second = picture(he, 8.0), picture(ihc, 8.0)
    for is_mirrored in (False, True):
        results = []
        for seed in range(10):
            degrees = float(np.random.default_rng(seed).uniform(0, 360))
            results.append(register(first, _turned(second, degrees, is_mirrored=is_mirrored)))
        words = [result.verdict.word for result in results]
        most = max(result.candidates[0].evidence.deviations for result in results)
        kind = "turned and mirrored" if is_mirrored else "turned"
        print(f"hpylori, {kind} | {words.count('refuse')} of {len(words)} refused | {most:.1f}", flush=True)
    for one, other in STRANGERS:
        result = register(picture(_slides(data2, one)[0], 8.0), picture(_slides(data2, other)[1], 8.0))
        deviations = result.candidates[0].evidence.deviations
        print(f"H&E of {one}, IHC of {other} | {result.verdict.word} | {deviations:.1f}", flush=True)


def _turned(source: Picture, degrees: float, *, is_mirrored: bool) -> Picture:
    """A picture, rotated about its centre on a canvas that holds all of it."""
    h, w = source.density.shape
    side = int(np.hypot(h, w)) + 1
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), degrees, 1.0)
    matrix[:, 2] += (side - w) / 2, (side - h) / 2
    density, tissue = (
        cv2.warpAffine(np.fliplr(a) if is_mirrored else a, matrix, (side, side))
        for a in (source.density, source.tissue.astype(np.float32))
    )
    return Picture(density, tissue > 0.5, source.um)


if __name__ == "__main__":
    main()
