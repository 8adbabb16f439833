"""Which split a tile belongs to: columns of the slide with a buffer between, or one split for all."""

from __future__ import annotations

from collections.abc import Sequence

from wsi_stain.pairing.request import Split

VAL, TEST = 0.15, 0.15
"""Shares of the columns with tiles; the rest, less two buffers of one column, is train."""
FEWEST_COLUMNS = 5
"""With fewer columns all tiles are train: there is no room for three splits and their buffers."""


def split_of(columns: Sequence[int], split: Split) -> dict[int, str]:
    """The split of each column of tiles; a buffer, whose tiles are left out, has none.

    Args:
        columns: the columns that hold tiles, in ascending order.
        split: `columns`, or the split of all.
    """
    if split != "columns":
        return dict.fromkeys(columns, split)
    n = len(columns)
    if n < FEWEST_COLUMNS:
        return dict.fromkeys(columns, "train")
    val, test = (max(1, round(share * n)) for share in (VAL, TEST))
    names = ["train"] * (n - val - test - 2) + [""] + ["val"] * val + [""] + ["test"] * test
    return {column: name for column, name in zip(columns, names, strict=True) if name}
