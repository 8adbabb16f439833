"""Whether the slide of a conversion is what its model was trained on; looked at before the first block."""

from __future__ import annotations

import logging

from wsi_stain.conversion.survey import Survey
from wsi_stain.errors import SlideError
from wsi_stain.measure.deconvolution import HE_BACKGROUND
from wsi_stain.measure.stains import background_of
from wsi_stain.trust.portrait import portrait
from wsi_stain.trust.sample import tissue_tiles
from wsi_stain.trust.verdict import InputVerdict, judge

THUMBNAIL_PX = 1024

log = logging.getLogger(__name__)


def check_input(survey: Survey) -> InputVerdict | None:
    """Judge the slide on a few tiles of its tissue; a verdict that is not `ok` is logged.

    Returns:
        The verdict; None if the model takes any stain, or the check is disabled.

    Raises:
        SlideError: the slide is bad, and the request is strict.
    """
    if survey.bundle.expects != "H&E" or not survey.request.config.check_input:
        return None
    verdict = examine(survey)
    name, reasons = survey.request.slide.name, "; it ".join(verdict.reasons)
    if verdict.level == "bad" and survey.request.strict:
        raise SlideError(f"{name} {reasons}; stain an H&E slide, or omit --strict to stain it all the same")
    if verdict.level != "ok":
        trust = "its virtual stain is not to be trusted" if verdict.level == "bad" else "the model may be wrong on it"
        log.warning("%s %s; %s", name, reasons, trust)
    return verdict


def facts_of(verdict: InputVerdict | None) -> dict[str, str]:
    """The verdict as texts for the metadata of an output; none if the slide was not looked at."""
    return {} if verdict is None else verdict.in_words()


def examine(survey: Survey) -> InputVerdict:
    """The verdict on the slide of a survey."""
    view, trust = survey.view.open(), survey.bundle.trust
    with view.slide:
        background = background_of(view.slide.thumbnail(THUMBNAIL_PX)) or HE_BACKGROUND
        tiles = [tile for _, tile in tissue_tiles(view, survey.mask, background, survey.grid.region)]
    growth = float(1 / view.scale)
    return judge(portrait(tiles, background, view.mpp or 1.0), trust and trust.figures, growth=growth)
