"""Slides with tiles without data: a sparse scan, or a file that was never finished."""

from __future__ import annotations

import logging

from wsi_stain.errors import SlideError

MOST_ABSENT = 0.5
"""Share of level 0; a file with less than half of its tiles is a broken copy rather than a sparse scan."""
WARN_ABSENT = 0.01

log = logging.getLogger(__name__)


def check_absent(share: float, name: str) -> None:
    """Warn of tiles without data, which are read as white.

    Args:
        share: of level 0.
        name: of the file.

    Raises:
        SlideError: most of the slide is absent.
    """
    if share > MOST_ABSENT:
        raise SlideError(
            f"{name} has no data for {share:.0%} of its tiles; the file was not written to its end; copy it again, "
            "or, if it is sparse on purpose, convert it to a TIFF with all tiles, for example with vips"
        )
    if share > WARN_ABSENT:
        log.warning("%s has no data for %.0f %% of its tiles; they are read as white background", name, 100 * share)
