"""What two slides must not be, checked before a registration takes minutes."""

from __future__ import annotations

import logging

from wsi_stain.errors import SlideError
from wsi_stain.output.virtual import virtual_stain
from wsi_stain.pairing.request import PairsRequest
from wsi_stain.registration.images import background_in
from wsi_stain.slide.slide import MAX_GROWTH, Slide
from wsi_stain.tissue.detect import find_tissue
from wsi_stain.trust.portrait import portrait
from wsi_stain.trust.sample import tissue_tiles
from wsi_stain.trust.verdict import InputVerdict, judge

log = logging.getLogger(__name__)


def check_scales(request: PairsRequest, he: Slide, ihc: Slide) -> None:
    """Refuse slides without a pixel size, and tiles that are finer than a slide.

    Raises:
        SlideError: the message names the option that helps.
    """
    for slide, option in ((he, "--he-mpp"), (ihc, "--ihc-mpp")):
        if slide.mpp_or_none is None:
            raise SlideError(f"{slide.path.name} has no pixel size; pass {option}, for example {option} 0.25")
        if slide.mpp > request.mpp * MAX_GROWTH:
            raise SlideError(
                f"{slide.path.name} has {slide.mpp:g} µm/px, coarser than the tiles; pass --mpp {slide.mpp:g} or more"
            )


def check_origin(he: Slide, ihc: Slide, is_same: bool) -> None:
    """Refuse virtual stains, and one slide passed twice.

    Args:
        he: the H&E.
        ihc: the other stain.
        is_same: whether the files of both have the same content.

    Raises:
        SlideError: either is the case.
    """
    for slide in (he, ihc):
        if virtual_stain(slide.path) is not None:
            raise SlideError(f"{slide.path.name} is a virtual stain, not a scan; pass a scanned slide")
    if is_same:
        raise SlideError(f"{he.path} and {ihc.path} are the same slide; pass the H&E slide and the IHC slide")


def check_order(request: PairsRequest, he: Slide, ihc: Slide) -> None:
    """Refuse slides in the wrong order; warn if the first does not look like H&E.

    Raises:
        SlideError: the second looks like H&E, and the first does not.
    """
    first = _looks(he, request.mpp)
    if first.level != "bad":
        return
    reason = f"{he.path.name} {'; it '.join(first.reasons)}"
    if _looks(ihc, request.mpp).level == "ok":
        raise SlideError(f"{reason}; {ihc.path.name} looks like H&E: pass the H&E slide first")
    log.warning("%s; look at the pairs before you train on them", reason)


def _looks(slide: Slide, mpp: float) -> InputVerdict:
    """Whether a slide is H&E, from a few tiles."""
    background = background_in(slide.thumbnail(1024))
    tiles = [tile for _, tile in tissue_tiles(slide.at(mpp), find_tissue(slide), background)]
    return judge(portrait(tiles, background, mpp), None)
