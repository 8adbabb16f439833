"""Where two registered slides can be compared: blocks with tissue in both, in which the registration holds."""

from __future__ import annotations

import numpy as np

from wsi_stain.errors import UnreadableRegion
from wsi_stain.geometry import Box
from wsi_stain.measure.deconvolution import tissue
from wsi_stain.pairing.case import Case
from wsi_stain.pairing.cut import MOST_BLANK, NEAR_UM, blank
from wsi_stain.pairing.resample import Warped
from wsi_stain.registration.images import background_in, picture, working_um
from wsi_stain.registration.residuals import residuals

LOOK_UM = 8.0
"""µm per px at which tissue is looked for."""


def held_blocks(case: Case, side_um: float) -> np.ndarray:
    """The whole blocks of a side that can be compared, in the frame of the H&E: bool (rows, columns).

    The rules are those by which tiles are cut: enough tissue in the H&E, IHC on it, and windows around the block that
    hold, with a small median displacement.
    """
    um = working_um(case.he, case.ihc)
    off = residuals(picture(case.he, um), picture(case.ihc, um), case.transform)
    look_um = max(LOOK_UM, case.he.mpp, case.ihc.mpp)
    he, warped = case.he.at(look_um), Warped(case.ihc.at(look_um), case.transform, look_um)
    backgrounds = background_in(case.he.thumbnail(1024)), background_in(case.ihc.thumbnail(1024))
    rows, columns = (int(length * case.he.mpp // side_um) for length in case.he.size)
    held = np.zeros((rows, columns), bool)
    edges = [np.rint(np.arange(n + 1) * side_um / look_um).astype(int) for n in (rows, columns)]
    for row, column in np.ndindex(rows, columns):
        off_um, confidence = off.near((np.array([row, column]) + 0.5) * side_um, max(0.75 * side_um, NEAR_UM))
        if not (confidence >= case.least_confidence and off_um <= case.most_misaligned_um):
            continue  # also NaN: no window
        (y0, y1), (x0, x1) = (e[i : i + 2].tolist() for e, i in zip(edges, (row, column), strict=True))
        box = Box(y0, x0, y1, x1) & Box.of(he.size)
        try:
            is_tissue = tissue(he.read(box), look_um, backgrounds[0])
            ihc, inside = warped.read(box)
        except UnreadableRegion:
            continue
        lost = blank(ihc, look_um, backgrounds[1]) | ~inside
        held[row, column] = is_tissue.mean() >= case.least_tissue and lost[is_tissue].mean() <= MOST_BLANK
    return held
