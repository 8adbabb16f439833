"""What a read-out starts from: the slide at its scale, tissue, stains, regions, and the model of a virtual stain."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain.errors import BundleError, ConfigError, MaskError, SlideError, UnreadableRegion
from wsi_stain.measure.stains import Stains, background_of, estimate
from wsi_stain.model.bundle import Bundle
from wsi_stain.output.origin import provenance
from wsi_stain.output.virtual import virtual_stain
from wsi_stain.readout.blocks import BlockGrid
from wsi_stain.readout.regions import read_regions
from wsi_stain.readout.request import MeasureRequest
from wsi_stain.readout.work import MeasureJob
from wsi_stain.slide.slide import Slide, View
from wsi_stain.tissue.detect import find_tissue
from wsi_stain.tissue.mask import TissueMask, from_geojson
from wsi_stain.trust.sample import places

THUMBNAIL_PX = 1024
SAMPLES, SAMPLE_PX = 64, 256
"""Places from which the vectors are estimated, spread evenly over the tissue, and the side of each in view px."""
ASSUMED = (255.0, 255.0, 255.0)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ReadoutSurvey:
    """What a read-out starts from; its slide stays open until `close`."""

    request: MeasureRequest
    job: MeasureJob
    thumbnail: np.ndarray
    """uint8 (h, w, 3)."""
    origin: Mapping[str, str]
    """Provenance of a virtual stain of ours; empty for any other slide."""
    is_virtual: bool
    """Whether the file says that it is a virtual stain, ours or another's."""
    bundle: Bundle | None
    """The model of the virtual stain, if it is at hand."""
    facts: Mapping[str, Any]
    """How background, vectors and tissue were chosen, for `measure.json`."""

    @classmethod
    def of(cls, request: MeasureRequest) -> ReadoutSurvey:
        """Open the slide and choose everything that the request leaves open.

        Raises:
            WsiStainError: the slide, the masks or the settings cannot be used.
        """
        slide = Slide.open(request.slide, mpp=request.mpp, image=request.image, z=request.z)
        try:
            return cls._of(request, slide)
        except BaseException:
            slide.close()
            raise

    @classmethod
    def _of(cls, request: MeasureRequest, slide: Slide) -> ReadoutSurvey:
        view = slide.at(slide.mpp if request.at is None else request.at)
        assert view.mpp, "a view of a given scale has a pixel size"
        grid = BlockGrid(view.size, view.mpp)
        origin = provenance(request.slide)
        bundle = _bundle(request, origin)
        thumbnail = slide.thumbnail(THUMBNAIL_PX)
        mask, tissue_from = _mask(request, slide)
        background, background_from = _background(request, bundle, thumbnail)
        stains, vectors_from = _stains(request, view, mask, background, bundle)
        regions = () if request.roi is None else read_regions(request.roi)
        if regions and slide.stretch != (1, 1):
            raise MaskError(f"the pixels of {slide.path.name} are not square, so regions drawn on them do not fit")
        job = MeasureJob(view, grid, stains, request.thresholds, mask, tissue_from.startswith("detected"), regions)
        facts = {"tissue": tissue_from, "background": background_from, "vectors": vectors_from}
        is_virtual = bool(origin) or virtual_stain(request.slide) is not None
        return cls(request, job, thumbnail, origin, is_virtual, bundle, facts)

    def close(self) -> None:
        """Close the slide."""
        self.job.view.slide.close()


def _bundle(request: MeasureRequest, origin: Mapping[str, str]) -> Bundle | None:
    """The model that made a virtual stain: the named one, or a shipped one with the same weights."""
    if request.model is not None:
        bundle = Bundle.open(request.model)
        if origin and bundle.sha256 != origin.get("model_sha256", ""):
            raise BundleError(
                f"{request.slide.name} was made by {origin.get('model')} {origin.get('model_version')}, whose weights "
                f"are not those of {bundle.name} {bundle.version}; pass the bundle that made it, or omit --model"
            )
        return bundle
    if not origin:
        return None
    with suppress(BundleError):
        bundle = Bundle.open(origin.get("model", ""))
        if bundle.sha256 == origin.get("model_sha256", ""):
            return bundle
    return None


def _mask(request: MeasureRequest, slide: Slide) -> tuple[TissueMask | None, str]:
    if request.mask == "none":
        return None, "every pixel"
    if request.mask != "auto":
        if slide.stretch != (1, 1):
            raise MaskError(f"the pixels of {slide.path.name} are not square, so a mask drawn on them does not fit")
        return from_geojson(Path(request.mask), slide.size), f"drawn: {request.mask}"
    if request.he is None:
        return find_tissue(slide), "detected on the slide"
    with Slide.open(request.he, mpp=request.mpp if slide.mpp_or_none is None else None) as he:
        _check_same_frame(slide, he)
        mask = find_tissue(he)
        scale = mask.scale * slide.size.w / he.size.w
        return TissueMask(mask.array, scale, slide.size), f"detected on {request.he.name}"


def _check_same_frame(slide: Slide, he: Slide) -> None:
    across, down = he.size.w / slide.size.w, he.size.h / slide.size.h
    if abs(across / down - 1) > 2 / min(*slide.size, *he.size):
        raise SlideError(
            f"{he.path.name} is {he.size.w} × {he.size.h} px and {slide.path.name} {slide.size.w} × {slide.size.h} px: "
            "they do not show the same frame; --he must be the H&E from which the slide was made"
        )


def _background(
    request: MeasureRequest, bundle: Bundle | None, thumbnail: np.ndarray
) -> tuple[tuple[float, float, float], str]:
    if request.background is not None:
        return request.background, "given"
    if bundle is not None:
        red, green, blue = (float(c) for c in bundle.background_colour)
        return (red, green, blue), f"of the model {bundle.name}"
    background = background_of(thumbnail)
    if background is None:
        log.warning("%s shows no empty background; white is assumed; pass --background R,G,B", request.slide.name)
        return ASSUMED, "assumed: the slide shows no background"
    return background, "estimated"


def _stains(
    request: MeasureRequest,
    view: View,
    mask: TissueMask | None,
    background: tuple[float, float, float],
    bundle: Bundle | None,
) -> tuple[Stains, str | dict[str, str]]:
    choice = request.stains
    if choice == "auto":
        choice = "estimate" if bundle is None else "model"
    if isinstance(choice, tuple):
        return Stains(background, *choice, third=None), "given"
    if choice == "model":
        if bundle is None:
            raise ConfigError(f"{request.slide.name} is not a virtual stain of a known model; omit --stains model")
        return Stains(background), f"of the model {bundle.name}: Ruifrok's, as in its held-out figures"
    if choice == "ruifrok":
        return Stains(background), "Ruifrok's"
    return estimate(_sample(view, mask), background)


def _sample(view: View, mask: TissueMask | None) -> np.ndarray:
    """Pixels of tissue, uint8 (n, 3), from places spread over the slide; the same in every run."""
    parts = []
    for box in islice(places(view, mask, side=SAMPLE_PX) or places(view, None, side=SAMPLE_PX), SAMPLES):
        with suppress(UnreadableRegion):
            parts.append(view.read(box)[::2, ::2].reshape(-1, 3))
    return np.concatenate(parts) if parts else np.empty((0, 3), np.uint8)
