"""Compares two sets of pairs that were cut at the same places of one H&E slide, and prints a table.

    python benchmarks/same_places.py pairs/case1 OTHER_PAIRS

For the tiles that both have (equal x and y): how far each stain is off its H&E, by how much the two stains differ, and
the correlation of their DAB-positive share in blocks of 128 px.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from wsi_stain.measure.deconvolution import HE_BACKGROUND, POSITIVE_OD, dab
from wsi_stain.measure.registration import match, structure
from wsi_stain.pairs.pair import find_pairs, read_pair

BLOCK_PX = 128


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("theirs", type=Path)
    arguments = parser.parse_args()
    ours, theirs = ({(p.x, p.y): p for p in find_pairs(folder)} for folder in (arguments.ours, arguments.theirs))
    places = sorted(set(ours) & set(theirs))
    print(f"{len(ours)} and {len(theirs)} pairs, {len(places)} at the same places", flush=True)
    off, between, shares = [], [], []
    for place in places:
        pairs = [read_pair(ours[place]), read_pair(theirs[place])]
        shapes = [(structure(he), structure(ihc)) for he, ihc in pairs]
        off.append([match(he, ihc).displacement_px for he, ihc in shapes])
        found = match(shapes[0][1], shapes[1][1])
        between.append((found.displacement_px, found.dy, found.dx))
        shares.append([_shares(ihc) for _, ihc in pairs])
    print("| | median | 90th percentile |\n|---|---|---|")
    for name, values in (
        ("ours, H&E to stain, px", np.array(off)[:, 0]),
        ("theirs, H&E to stain, px", np.array(off)[:, 1]),
        ("stain to stain, px", np.array(between)[:, 0]),
    ):
        print(f"| {name} | {np.nanmedian(values):.1f} | {np.nanpercentile(values, 90):.1f} |")
    dy, dx = np.nanmedian(np.array(between)[:, 1:], axis=0)
    print(f"their stain lies {dy:+.1f} px lower and {dx:+.1f} px further right (medians)")
    one, other = np.moveaxis(np.array(shares), 1, 0).reshape(2, -1)
    print(f"correlation of the DAB-positive share in {one.size} blocks of {BLOCK_PX} px: ", end="")
    print(f"{np.corrcoef(one, other)[0, 1]:.3f}; means {one.mean():.4f} and {other.mean():.4f}")


def _shares(ihc: np.ndarray) -> np.ndarray:
    """The DAB-positive share of each whole block: float64 (rows, columns)."""
    positive = (dab(ihc, HE_BACKGROUND) > POSITIVE_OD).astype(np.float64)
    rows, columns = (n // BLOCK_PX for n in positive.shape)
    whole = positive[: rows * BLOCK_PX, : columns * BLOCK_PX]
    return whole.reshape(rows, BLOCK_PX, columns, BLOCK_PX).mean((1, 3))


if __name__ == "__main__":
    main()
