"""The table of pairs that training and people read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from wsi_stain.pairing.cut import PairTile
from wsi_stain.pairing.request import PairsRequest
from wsi_stain.pairing.strata import strata_of, stratum
from wsi_stain.slide.slide import Slide

CSV = "pairs.csv"
COLUMNS = (
    *("he", "ihc", "slide_id", "split", "x", "y", "side", "mpp", "patient_id"),
    *("misalignment_px", "confidence", "dab_fraction", "tissue_fraction", "stratum"),
)


def table(request: PairsRequest, tiles: Sequence[PairTile], splits: Mapping[int, str], he: Slide) -> str:
    """The CSV that training reads; x, y and side are level-0 px of the H&E."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    scale, areas = he.at(request.mpp).scale, strata_of(request.strata)
    side = request.tile * scale
    for tile in tiles:
        x, y = (round(index * side) for index in (tile.column, tile.row))
        figures = (
            round(tile.misalignment_um / request.mpp, 2),
            tile.confidence,
            tile.dab_fraction,
            tile.tissue_fraction,
            stratum(areas, tile.row, tile.column, side),
        )
        files = (f"he/{tile.name}", f"ihc/{tile.name}")
        place = (request.name, splits[tile.column], x, y, round(side), request.mpp)
        writer.writerow([*files, *place, request.patient, *figures])
    return text.getvalue()
