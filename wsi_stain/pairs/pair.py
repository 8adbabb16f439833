"""Paired tiles: one H&E field and the same field in the other stain, in the layouts of public data sets.

Files pair by stem; extensions may differ (jpg, png, tif). Hidden files are skipped.

    pairs.csv            he,ihc,slide_id,split and, if known, x,y,side,he_side,mpp,patient_id,stratum
    HE/train, IHC/train  BCI
    trainA, trainB       MIST
    train                pix2pix: both halves in one image, H&E on the left
    he, ihc              no splits
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from wsi_stain.errors import SlideError, TrainingError
from wsi_stain.files.table import BadTable, read_table
from wsi_stain.slide.pixel_size import check_mpp
from wsi_stain.slide.readers.base import UnsupportedFormat
from wsi_stain.slide.readers.image import decode

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
COLUMNS = ("he", "ihc", "slide_id", "split")
MORE_COLUMNS = ("x", "y", "side", "he_side", "mpp")
EQUAL_MPP = 1.05
"""Largest factor between two pixel sizes that count as equal."""
SPLITS = ("train", "val", "test")
LAYOUTS = {
    "BCI": tuple((split, f"HE/{split}", f"IHC/{split}") for split in SPLITS),
    "MIST": tuple((split, f"{split}A", f"{split}B") for split in SPLITS),
    "pix2pix": tuple((split, split, split) for split in SPLITS),
    "plain": (("", "he", "ihc"), ("", "HE", "IHC")),
}
"""Split, folder of H&E and folder of IHC; where both are one folder, each image holds both stains side by side."""
HeSide = Literal["", "left", "right"]


@dataclass(frozen=True, slots=True)
class Pair:
    """One H&E tile and the same field in the other stain."""

    he: Path
    ihc: Path
    """The same path as `he` where one image holds both."""
    slide_id: str
    """The H&E's slide; "" = unknown: only a table states it, it is never derived from names."""
    split: str
    """train, val or test; "" in a folder without splits."""
    x: int | None = None
    y: int | None = None
    """Left and upper edge of the tile in level-0 px of its slide; None = unknown."""
    side: int | None = None
    """Side of the tile in level-0 px of its slide; None = unknown."""
    patient_id: str = ""
    """The column `patient_id` of a table; "" = unknown."""
    stratum: str = ""
    """The column `stratum` of a table, a group of fields to be reported by itself; "" = none."""
    he_side: HeSide = ""
    """Which half of a side-by-side image is H&E; "" = two files."""
    mpp: float | None = None
    """Pixel size of the tile, µm, from the column `mpp` of a table; None = unknown."""


def find_pairs(source: Path, split: str | None = None) -> list[Pair]:
    """All pairs in a folder or CSV, sorted by name.

    Args:
        source: a CSV with the columns he, ihc, slide_id and split (paths relative to it), a folder with a `pairs.csv`,
            or a folder in one of the `LAYOUTS`.
        split: only the pairs of this split.

    Raises:
        TrainingError: no pairs, a missing column, or a file without its partner.
    """
    pairs, unpaired = scan(source)
    if unpaired:
        more = f" (and {len(unpaired) - 1} more such files)" if len(unpaired) > 1 else ""
        raise TrainingError(unpaired[0] + more)
    selection = [p for p in pairs if split in (None, p.split)]
    if not pairs:
        raise TrainingError(f"no pairs in {source}: its table has no rows")
    if not selection:
        known = ", ".join(sorted({p.split for p in pairs} - {""})) or "none"
        raise TrainingError(f"no pairs of the split {split!r} in {source}: available splits: {known}")
    return selection


def scan(source: Path) -> tuple[list[Pair], list[str]]:
    """All pairs in a folder or CSV, sorted by name, and one sentence for every file whose partner is missing.

    Raises:
        TrainingError: no pairs, or an invalid table.
    """
    table = source / "pairs.csv" if source.is_dir() else source
    pairs, unpaired = _from_csv(table) if table.is_file() else _from_folders(source)
    return sorted(pairs, key=lambda p: (p.he, p.ihc)), unpaired


def _from_csv(table: Path) -> tuple[list[Pair], list[str]]:
    try:
        content = read_table(table, (*COLUMNS, *MORE_COLUMNS))
    except BadTable as err:
        raise TrainingError(f"{table} {err}; provide a UTF-8 CSV with {', '.join(COLUMNS)}") from err
    missing = [name for name in COLUMNS if name not in content.columns]
    if missing:
        raise TrainingError(f"{table} lacks the column {missing[0]!r}: it needs he, ihc, slide_id and split")
    lines = [line.number for line in content.lines]
    pairs = [_from_row(line.values, table, line.number) for line in content.lines]
    missing_files = [_missing(pair) for pair in pairs]
    unpaired = [
        f"{table}, line {line}: no such file: {path}; paths are relative to the table"
        for line, paths in zip(lines, missing_files, strict=True)
        for path in paths
    ]
    return [pair for pair, paths in zip(pairs, missing_files, strict=True) if not paths], unpaired


def _missing(pair: Pair) -> list[Path]:
    return [path for path in dict.fromkeys((pair.he, pair.ihc)) if not path.is_file()]


def _from_row(row: Mapping[str, Any], table: Path, line: int) -> Pair:
    if any(name not in row for name in COLUMNS):
        raise TrainingError(f"{table}, line {line} is too short: it needs he, ihc, slide_id and split")
    he, ihc = (table.parent / row[name].strip() for name in ("he", "ihc"))
    he_side = (row.get("he_side") or "").strip() or ("left" if he == ihc else "")
    if he_side not in get_args(HeSide) or (he_side == "") != (he != ihc):
        raise TrainingError(
            f"{table}, line {line}: he_side is {he_side!r}: it must be left or right if he and ihc are one image, "
            "and empty if they are two"
        )
    places = [_whole(row.get(name), f"{table}, line {line}: {name}") for name in ("x", "y", "side")]
    patient, stratum = ((row.get(name) or "").strip() for name in ("patient_id", "stratum"))
    mpp = _length(row.get("mpp"), f"{table}, line {line}: mpp")
    return Pair(
        he, ihc, row["slide_id"].strip(), row["split"].strip(), *places, patient, stratum, he_side, mpp  # type: ignore[arg-type]
    )  # fmt: skip


def _length(text: str | None, where: str) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        mpp = float(text)
        check_mpp(mpp, where)
    except (ValueError, SlideError) as err:
        raise TrainingError(f"{where} is {text!r}: it must be the µm per px of the tile, or empty") from err
    return mpp


def check_scale(pairs: Iterable[Pair], mpp: float | None, key: str) -> None:
    """Refuse pairs that were cut at another pixel size; a model trained on them would be used at the wrong scale.

    Args:
        pairs: those whose table states no pixel size are accepted.
        mpp: pixel size that is expected, µm; None accepts all.
        key: the setting or option that states it, for the message.

    Raises:
        TrainingError: a pixel size of the table differs by more than 5 %.
    """
    if mpp is None:
        return
    for pair in pairs:
        if pair.mpp and max(pair.mpp / mpp, mpp / pair.mpp) > EQUAL_MPP:
            raise TrainingError(
                f"{pair.he} was cut at {pair.mpp:g} µm/px, but {key} is {mpp:g}; set {key} to {pair.mpp:g}, or cut the "
                f"pairs again with --mpp {mpp:g}"
            )


def evenly_spread(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most` of the pairs, evenly spread over their order, so that every slide has its share."""
    return [pairs[i] for i in sorted(set(np.linspace(0, len(pairs) - 1, most).astype(int)))] if pairs else []


def _whole(text: str | None, where: str) -> int | None:
    if text is None or not text.strip():
        return None
    try:
        return int(text)
    except ValueError as err:
        raise TrainingError(f"{where} is {text!r}: it must be a whole number of level-0 px, or empty") from err


def _from_folders(root: Path) -> tuple[list[Pair], list[str]]:
    pairs, unpaired = [], []
    for layout in LAYOUTS.values():
        for split, he, ihc in _once(root, layout):
            matches, orphans = _match(root / he, root / ihc, split)
            pairs += matches
            unpaired += orphans
        if pairs or unpaired:
            return pairs, unpaired
    raise TrainingError(
        f"no pairs in {root}: provide a CSV (he, ihc, slide_id, split) or a folder in the layout of "
        "BCI (HE/train, IHC/train), MIST (trainA, trainB) or pix2pix (train, H&E on the left), or folders he and ihc"
    )


def _once(root: Path, layout: tuple[tuple[str, str, str], ...]) -> Iterator[tuple[str, str, str]]:
    """The layout's folders; if the file system ignores case, `he` and `HE` are one folder and appear once."""
    folders: list[Path] = []
    for split, he, ihc in layout:
        folder = root / he
        if not any(folder.exists() and folder.samefile(other) for other in folders):
            folders += [folder] if folder.exists() else []
            yield split, he, ihc


def _match(he: Path, ihc: Path, split: str) -> tuple[list[Pair], list[str]]:
    """Pairs of one split, and a sentence for every file without its partner."""
    if he == ihc:
        return [Pair(path, path, "", split, he_side="left") for path in _images(he).values()], []
    ours, theirs = _images(he), _images(ihc)
    pairs = [Pair(ours[stem], theirs[stem], "", split) for stem in ours if stem in theirs]
    orphans = [(path, ihc) for stem, path in ours.items() if stem not in theirs]
    orphans += [(path, he) for stem, path in theirs.items() if stem not in ours]
    return pairs, [f"{path} has no partner: expected {folder / path.name}" for path, folder in orphans]


def _images(folder: Path) -> dict[str, Path]:
    """Stem → image of a folder, sorted; empty if the folder does not exist."""
    images: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() not in IMAGE_ENDINGS or path.name.startswith("."):
            continue
        other = images.setdefault(path.stem, path)
        if other != path:
            raise TrainingError(f"{other} and {path.name} have the same stem: keep only one, as files pair by stem")
    return images


@lru_cache(maxsize=256)
def load_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Both images, uint8 (H, W, 3) sRGB; the last 256 pairs stay in memory.

    Raises:
        TrainingError: a file that cannot be decoded, or sides that differ.
    """
    return read_pair(pair)


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Like `load_pair`, for callers that read each pair once: nothing is cached."""
    if pair.he_side:
        left, right = _halves(pair.he)
        return (left, right) if pair.he_side == "left" else (right, left)
    he, ihc = _decode(pair.he), _decode(pair.ihc)
    if he.shape != ihc.shape:
        sizes = [f"{w} × {h}" for h, w, _ in (he.shape, ihc.shape)]
        raise TrainingError(f"{pair.he} is {sizes[0]} px but {pair.ihc} is {sizes[1]} px: pairs must have equal sizes")
    return he, ihc


def _halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    both = _decode(path)
    h, w, _ = both.shape
    if w % 2:
        raise TrainingError(f"{path} is {w} × {h} px: an image with both stains side by side must have an even width")
    return both[:, : w // 2], both[:, w // 2 :]


def _decode(path: Path) -> np.ndarray:
    try:
        return decode(path).pixels
    except UnsupportedFormat as err:
        raise TrainingError(f"{path} {err}, or remove the pair") from err
    except (TypeError, ArithmeticError, LookupError) as err:  # of libraries, on tags that no picture has
        raise TrainingError(f"{path} is damaged ({err}); copy it again, or remove the pair") from err
