"""A finished case of `wsi-stain pairs make`: its slides, which must still be the same files, and its transform."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsi_stain.errors import OutputError, SlideError
from wsi_stain.files import record
from wsi_stain.registration.transform import Transform
from wsi_stain.slide.files import digest
from wsi_stain.slide.slide import Slide

log = logging.getLogger(__name__)

JSON, TRANSFORM = "pairs.json", "registration.npz"
"""Files of a case: its settings and figures, written last; and its transform."""
Side = Literal["he", "ihc"]


@dataclass(frozen=True, eq=False)
class Case:
    """A case whose slides correspond, and are open.

    with open_case(Path("pairs/CASE")) as case:
        ihc_um = case.transform(he_um)
    """

    name: str
    he: Slide
    ihc: Slide
    transform: Transform
    mpp: float
    """µm per px of the case's tiles."""
    verdict: str
    """`register` or `poor`."""
    least_tissue: float
    """Share of tissue, of confidence, and the displacement that its tiles had to reach, as in `PairsRequest`."""
    least_confidence: float
    most_misaligned_um: float
    hashes: Mapping[str, str]
    """SHA-256 of both slides (`he`, `ihc`) and of the transform (`registration`)."""


@contextmanager
def open_case(folder: Path, *, he: Path | None = None, ihc: Path | None = None) -> Generator[Case]:
    """Open a finished case and its slides.

    Args:
        folder: the output of `wsi-stain pairs make`.
        he: the H&E slide, if it is not where it was.
        ihc: the other slide, likewise.

    Raises:
        OutputError: the folder is not a finished case, or its slides do not correspond.
        SlideError: a slide is missing, or is another file than the one that was registered.
    """
    content = record.read(folder / JSON)
    try:
        slides, request, verdict = content["slides"], content["request"], content["registration"]["verdict"]
    except (KeyError, TypeError):
        raise OutputError(
            f"{folder} is not a finished case: its {JSON} is missing or damaged; finish it with wsi-stain pairs make"
        ) from None
    if verdict == "refuse":
        raise OutputError(
            f"the slides of {folder} do not correspond (its verdict is refuse), so that no place of one is known in "
            "the other; choose another case"
        )
    transform = Transform.load(folder / TRANSFORM)
    if dict(transform.slides) != slides:
        raise OutputError(f"{folder / TRANSFORM} is of other slides than {folder / JSON}; make the case again")
    if verdict == "poor":
        log.warning("%s: only parts of the slides correspond (its verdict is poor)", folder)
    paths = content.get("paths", {})
    hashes = {side: facts["sha256"] for side, facts in slides.items()}
    hashes["registration"] = hashlib.sha256((folder / TRANSFORM).read_bytes()).hexdigest()
    with (
        _opened("he", slides, he or _path("he", paths, folder)) as first,
        _opened("ihc", slides, ihc or _path("ihc", paths, folder)) as second,
    ):
        yield Case(
            name=request["case"],
            he=first,
            ihc=second,
            transform=transform,
            mpp=request["mpp"],
            verdict=verdict,
            least_tissue=request["least_tissue"],
            least_confidence=request["least_confidence"],
            most_misaligned_um=request["most_misaligned_um"],
            hashes=hashes,
        )


def _path(side: Side, paths: Mapping[str, str], folder: Path) -> Path:
    if side not in paths:  # of a version that did not record them
        raise SlideError(f"{folder / JSON} does not contain the path of its {side} slide; pass --{side}")
    return Path(paths[side]).expanduser()


def _opened(side: Side, slides: Mapping[str, Mapping[str, Any]], path: Path) -> Slide:
    """A slide of the case, at the pixel size that was registered."""
    if not path.exists():
        raise SlideError(f"{path} does not exist; pass the slide with --{side}")
    sha256, _ = digest(path)
    if sha256 != slides[side]["sha256"]:
        raise SlideError(
            f"{path} is not the slide that was registered ({slides[side]['name']}): its content differs; pass that "
            f"one with --{side}, or make the case again"
        )
    return Slide.open(path, mpp=slides[side]["mpp"])
