"""Paired tiles: finding them in the layouts that public data sets have, and cutting the same crop from both stains.

Which crop image number k gets depends on the seed and on k alone, so a resumed training sees what an unbroken one sees.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from wsi_stain.errors import TrainingError

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
LAYOUTS = {
    "BCI": {"train": ("HE/train", "IHC/train"), "test": ("HE/test", "IHC/test")},
    "MIST": {"train": ("trainA", "trainB"), "val": ("valA", "valB")},
}
"""Folders of H&E and IHC per split; the files of a pair have the same name."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One H&E tile and the same field in the other stain."""

    he: Path
    ihc: Path
    slide_id: str
    split: str


def find_pairs(source: Path, split: str | None = None) -> list[Pair]:
    """All pairs in a folder or CSV, sorted by name.

    Args:
        source: a CSV with the columns he, ihc, slide_id and split (paths relative to it), a folder with a `pairs.csv`,
            or a folder in the layout of BCI or MIST.
        split: only the pairs of this split.

    Raises:
        TrainingError: nothing there, a missing column, a file without its partner.
    """
    table = source / "pairs.csv" if source.is_dir() else source
    if table.is_file():
        pairs = _from_csv(table)
    else:
        layout = next((x for x in LAYOUTS.values() if (source / x["train"][0]).is_dir()), None)
        if layout is None:
            raise TrainingError(
                f"no pairs in {source}: give a CSV (he, ihc, slide_id, split) or a folder in the layout of "
                "BCI (HE/train, IHC/train) or MIST (trainA, trainB)"
            )
        pairs = _from_folders(source, layout)
    chosen = sorted((p for p in pairs if split in (None, p.split)), key=lambda p: p.he)
    if not chosen:
        known = ", ".join(sorted({p.split for p in pairs})) or "none"
        raise TrainingError(f"no pairs of the split {split!r} in {source}: the splits there are {known}")
    return chosen


def _from_csv(table: Path) -> list[Pair]:
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = {"he", "ihc", "slide_id", "split"} - set(rows[0] if rows else ())
    if missing:
        raise TrainingError(f"{table} lacks the column {sorted(missing)[0]!r}: it needs he, ihc, slide_id and split")
    pairs = [Pair(table.parent / r["he"], table.parent / r["ihc"], r["slide_id"], r["split"]) for r in rows]
    for line, pair in enumerate(pairs, start=2):
        for path in (pair.he, pair.ihc):
            if not path.is_file():
                raise TrainingError(f"{table}, line {line}: no such file: {path}")
    return pairs


def _from_folders(root: Path, layout: dict[str, tuple[str, str]]) -> list[Pair]:
    pairs = []
    for split, (he, ihc) in layout.items():
        for path in sorted((root / he).glob("*")):
            if path.suffix.lower() not in IMAGE_ENDINGS:
                continue
            partner = root / ihc / path.name
            if not partner.is_file():
                raise TrainingError(f"{path} has no partner: expected {partner}")
            pairs.append(Pair(path, partner, path.stem.split("_")[0], split))
    return pairs


@lru_cache(maxsize=256)
def load_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Both images, uint8 (H, W, 3) sRGB; the last 256 pairs stay in memory.

    Raises:
        TrainingError: a file that cannot be decoded, or sides that differ.
    """
    images = []
    for path in (pair.he, pair.ihc):
        try:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")))
        except OSError as err:
            raise TrainingError(f"cannot decode {path}: {err}; remove the pair or mend the file") from err
    he, ihc = images
    if he.shape != ihc.shape:
        raise TrainingError(f"{pair.he} is {he.shape[:2]} but {pair.ihc} is {ihc.shape[:2]}: pairs must have one size")
    return he, ihc


@dataclass(frozen=True, slots=True)
class Crops:
    """An endless, shuffled stream of paired crops.

    Args:
        pairs: what to draw from; each epoch sees every pair once.
        side: side of the crops, px.
        seed: chooses order, place, flips and turns.

    Example:
        >>> he, ihc = Crops(tuple(pairs), side=256, seed=0).batch(first=0, n=8)  # doctest: +SKIP
    """

    pairs: tuple[Pair, ...]
    side: int
    seed: int

    def batch(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Images number `first` to `first + n`: two uint8 (N, side, side, 3)."""
        crops = [self.crop(i) for i in range(first, first + n)]
        return np.stack([he for he, _ in crops]), np.stack([ihc for _, ihc in crops])

    def crop(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Image `number` of the stream: the same window, flip and turn of both stains."""
        epoch, place = divmod(number, len(self.pairs))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.pairs))
        rng = np.random.default_rng([self.seed, 1, number])
        pair = self.pairs[order[place]]
        he, ihc = load_pair(pair)
        h, w = he.shape[:2]
        if min(h, w) < self.side:
            raise TrainingError(f"{pair.he} is {h}x{w} px: smaller than the crop of {self.side} px")
        y, x = rng.integers(h - self.side + 1), rng.integers(w - self.side + 1)
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        return tuple(_orient(a[y : y + self.side, x : x + self.side], turns, flip) for a in (he, ihc))  # type: ignore


def _orient(image: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    turned = np.rot90(image, turns)
    return turned[:, ::-1] if flip else turned
