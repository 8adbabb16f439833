"""Folders of `wsi-stain pairs make`, written from a known transform without a registration."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.builders.tiffs import write_tiff
from wsi_stain.registration.affine import Affine
from wsi_stain.registration.field import Deformation
from wsi_stain.registration.fragments import Fragments
from wsi_stain.registration.transform import Piece, Transform

ALL_ONE = Fragments(np.zeros((1, 1), np.uint8), 1.0)


def write_scan(path: Path, pixels: np.ndarray, mpp: float) -> Path:
    """A slide without loss: uint8 (h, w, 3) at `mpp` µm per px."""
    per_cm = round(1e4 / mpp)
    return write_tiff(path, pixels, tile=(256, 256), resolution=(per_cm, per_cm), resolutionunit=3)


def shifted(dy_um: float, dx_um: float) -> Piece:
    """A piece that only shifts."""
    return Piece(Affine(np.array([[1.0, 0, dy_um], [0, 1.0, dx_um]])), Deformation.still())


def write_case(
    folder: Path,
    he: Path,
    ihc: Path,
    *pieces: Piece,
    mpp: float,
    fragments: Fragments = ALL_ONE,
    verdict: str = "register",
    **changes: Any,
) -> Path:
    """A finished case of two slides of `mpp` µm per px; `changes` replace parts of pairs.json."""
    from wsi_stain.slide.slide import Slide

    facts = {}
    for side, path in (("he", he), ("ihc", ihc)):
        with Slide.open(path) as slide:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            size = {"width": slide.size.w, "height": slide.size.h}
            facts[side] = {"name": path.name, "sha256": sha256, "mpp": slide.mpp, **size}
    folder.mkdir()
    Transform(pieces or (shifted(0, 0),), fragments, facts).save(folder / "registration.npz")
    content = {
        "request": {"case": folder.name, "mpp": mpp, "most_misaligned_um": 16.0, "least_confidence": 0.3}
        | {"least_tissue": 0.3},
        "slides": facts,
        "paths": {"he": str(he), "ihc": str(ihc)},
        "registration": {"verdict": verdict},
    }
    (folder / "pairs.json").write_text(json.dumps(content | changes))
    return folder
