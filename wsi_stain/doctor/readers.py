"""Every reader opens a built-in slide, and finds the same picture in it."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from wsi_stain.doctor.finding import Finding
from wsi_stain.errors import WsiStainError
from wsi_stain.geometry import Box
from wsi_stain.slide.slide import Slide

SAMPLES = Path(__file__).parent / "samples"
"""Each named for its reader; `builders/samples.py` in the tests writes them."""
TRUTH = "image.png"
EXTRAS = {"wsidicom": "dicom", "pylibCZIrw": "czi"}
"""Readers whose library is optional, and the extra that installs it."""
MOST_DIFFERENCE = 2.0
"""Mean difference in grey levels; JPEG of these files differs by less than one."""
REINSTALL = "reinstall the libraries in the versions of constraints.txt"


def check_readers() -> Iterator[Finding]:
    """One finding per reader."""
    truth = _pixels(SAMPLES / TRUTH)[1].astype(int)
    for path in sorted(SAMPLES.iterdir()):
        if not path.name.startswith("bundle-"):
            yield _check(path, truth)


def _check(path: Path, truth: np.ndarray) -> Finding:
    name = path.stem if path.name != TRUTH else "image"
    subject = f"reader {name}"
    if name in EXTRAS and find_spec(name) is None:
        fix = f"pip install 'wsi-stain[{EXTRAS[name]}]' if you have such slides"
        return Finding(subject, "WARN", "not installed; OpenSlide reads most of these slides without it", fix)
    try:
        backend, pixels = _pixels(path)
    except WsiStainError as err:
        return Finding(subject, "FAIL", f"the built-in slide cannot be read: {err}", REINSTALL)
    if backend != name:
        return Finding(subject, "FAIL", f"the built-in slide {path.name} is read by {backend}", REINSTALL)
    difference = np.abs(pixels - truth).mean() if pixels.shape == truth.shape else 255.0
    if difference > MOST_DIFFERENCE:
        return Finding(subject, "FAIL", f"its pixels differ by {difference:.1f} grey levels on average", REINSTALL)
    return Finding(subject, "PASS", f"reads {path.suffix if path.suffix != '.zip' else '.zarr'}")


def _pixels(path: Path) -> tuple[str, np.ndarray]:
    """Name of the reader and the pixels of level 0; a folder is packed as a ZIP."""
    with tempfile.TemporaryDirectory() as folder:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
            path = next(Path(folder).iterdir())
        with Slide.open(path) as slide:
            return slide.backend, slide.at(None).read(Box.of(slide.size))
