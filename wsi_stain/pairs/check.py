"""Checks of pairs before training: problems that must stop it, and whether the two stains show the same fields.

Whether a pair shows one field is judged by comparison with shuffled pairs. The structural agreement of each H&E
with its own partner (`measure.registration`) is compared with that of H&E images with the partners of others. A pair
agrees if at most one in twenty shuffled ones does as well: its p-value, (1 + shuffled pairs at least as good) / (1 +
shuffled pairs) after Phipson & Smyth, "Permutation p-values should never be zero" (2010), is at most 0.05.

Among unrelated tiles one pair in twenty agrees, and chance makes half of the pairs agree in at most one of 450 sets. So
a set, and every split of at least five pairs, is flagged when less than half of its pairs agree. A true pair may fail
to agree where its tile has little structure; it is listed as one that disagrees only if most shuffled pairs do better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from wsi_stain.cluster.threads import thread_count
from wsi_stain.errors import TrainingError
from wsi_stain.measure.registration import NO_MATCH, Match, TileStructure, match, structure
from wsi_stain.pairs.leaks import PlacedTile, adjacent_splits, same_images, shared_slides
from wsi_stain.pairs.pair import Pair, read_pair

CHANCE = 0.05
"""Largest p-value of a pair that agrees."""
LEAST_SHARE = 0.5
"""Smallest share of agreeing pairs in a set that passes."""
LEAST_PAIRS = 5
"""With fewer pairs no p-value can reach `CHANCE`: 4 pairs have 12 shuffled ones."""
SHUFFLED = 2000
"""Shuffled comparisons in a set, or one per pair if that is more."""
CHUNK = 256
"""Pairs whose structures are in memory at a time, 32 MiB; partners are shuffled within such a chunk."""
MOST_SENTENCES = 10
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PairFigures:
    """Results for one pair."""

    pair: Pair
    problem: str = ""
    """Why it cannot be read; the fields below are then empty."""
    height: int = 0
    width: int = 0
    tile: PlacedTile | None = None
    """Properties of the H&E for leak detection."""
    match: Match = NO_MATCH
    chance: float = math.nan
    """p-value: how often shuffled pairs agree at least as well; NaN where a tile is blank or too small."""

    @property
    def is_judged(self) -> bool:
        """Whether there is enough structure for a judgement."""
        return not math.isnan(self.chance)

    @property
    def agrees(self) -> bool:
        """Whether the stains show the same field, beyond chance."""
        return self.chance <= CHANCE

    @property
    def disagrees(self) -> bool:
        """Whether most shuffled pairs agree better."""
        return self.chance > 0.5

    @property
    def misalignment_px(self) -> float:
        """Displacement of the stain, px; NaN where the pair does not agree or is displaced beyond the reach."""
        return self.match.displacement_px if self.agrees else math.nan


@dataclass(frozen=True, slots=True)
class Check:
    """Results for a set of pairs."""

    figures: tuple[PairFigures, ...]
    shuffled: np.ndarray
    """float64 (N,), sorted: agreement of the shuffled pairs."""
    flagged: tuple[str, ...]
    """One sentence per problem."""


def problems(pairs: Sequence[Pair], crop: int) -> list[str]:
    """Everything that must stop a training before it starts, one sentence each.

    Args:
        pairs: pairs of all splits; otherwise leaks between splits cannot be detected.
        crop: side of the crops, px.

    Returns:
        Images that cannot be read, are of unequal sizes or smaller than the crop, and leaks between splits; of each
        kind the first ten. Leaks inferred from similarity alone (`leaks.adjacent_splits`) are not included.
    """
    with ThreadPoolExecutor(thread_count()) as pool:
        return _problems(list(pool.map(lambda pair: _read(pair)[0], pairs)), crop)


def check(
    pairs: Sequence[Pair], *, crop: int = 0, seed: int = 0, progress: Progress = lambda done, total: None
) -> Check:
    """Look at every pair: the `problems`, neighbouring tiles in two splits, agreement of the stains, and misalignment.

    Args:
        pairs: of all splits.
        crop: side of the crops that a training will use, px; 0 = any size.
        seed: of the shuffling.
        progress: called with the number of pairs done and the total.
    """
    order = np.random.default_rng(seed).permutation(len(pairs))
    figures: dict[int, PairFigures] = {}
    shuffled: list[float] = []
    with ThreadPoolExecutor(thread_count()) as pool:
        for chunk in np.array_split(order, max(1, math.ceil(len(pairs) / CHUNK))):
            matched = list(pool.map(lambda i: _matched(pairs[i]), chunk))
            figures |= {int(i): result for i, (result, _) in zip(chunk, matched, strict=True)}
            partners = _partners([both for _, both in matched if both], SHUFFLED // len(pairs) if len(pairs) else 0)
            shuffled += pool.map(lambda two: match(*two).agreement, partners)
            progress(len(figures), len(pairs))
    null = np.sort([value for value in shuffled if not math.isnan(value)])
    judged = tuple(replace(f, chance=_chance(f.match.agreement, null)) for _, f in sorted(figures.items()))
    suspects = _first(adjacent_splits([f.tile for f in judged if f.tile]))
    return Check(judged, null, (*_problems(judged, crop), *suspects, *_disagreements(judged)))


def agreeing(figures: Iterable[PairFigures]) -> float:
    """Share of the judged pairs that agree; NaN where none is judged."""
    agree = [f.agrees for f in figures if f.is_judged]
    return float(np.mean(agree)) if agree else math.nan


def separation(check: Check) -> float:
    """Area under the ROC curve of true against shuffled pairs: 0.5 by chance, 1 if every true one agrees better."""
    true = [f.match.agreement for f in check.figures if f.is_judged]
    if not true:
        return math.nan
    below, upto = (np.searchsorted(check.shuffled, true, side) for side in ("left", "right"))
    return float((below + upto).mean() / 2 / len(check.shuffled))


def _read(pair: Pair) -> tuple[PairFigures, tuple[np.ndarray, np.ndarray] | None]:
    try:
        he, ihc = read_pair(pair)
    except TrainingError as err:
        return PairFigures(pair, problem=str(err)), None
    return PairFigures(pair, height=he.shape[0], width=he.shape[1], tile=PlacedTile.of(pair, he)), (he, ihc)


def _matched(pair: Pair) -> tuple[PairFigures, tuple[TileStructure, TileStructure] | None]:
    figures, images = _read(pair)
    if images is None:
        return figures, None
    he, ihc = (structure(image) for image in images)
    return replace(figures, match=match(he, ihc)), (he, ihc)


def _partners(
    structures: Sequence[tuple[TileStructure, TileStructure]], each: int
) -> Iterator[tuple[TileStructure, TileStructure]]:
    """Every H&E with the partners of the next `each` pairs, at least one; the pairs come in random order."""
    for step in range(1, min(max(each, 1), len(structures) - 1) + 1):
        for i, (he, _) in enumerate(structures):
            yield he, structures[(i + step) % len(structures)][1]


def _chance(agreement: float, null: np.ndarray) -> float:
    if math.isnan(agreement) or not len(null):
        return math.nan
    return float(1 + len(null) - np.searchsorted(null, agreement)) / (1 + len(null))


def _disagreements(figures: Sequence[PairFigures]) -> list[str]:
    """A sentence if the set disagrees, or else one for each split that does."""
    if sentence := _disagreement(figures, ""):
        return [sentence]
    parts = {split: [f for f in figures if f.pair.split == split] for split in sorted({f.pair.split for f in figures})}
    return [text for split, part in parts.items() if (text := _disagreement(part, f" of the split {split!r}"))]


def _disagreement(figures: Sequence[PairFigures], where: str) -> str:
    judged = sum(f.is_judged for f in figures)
    if judged < LEAST_PAIRS or agreeing(figures) >= LEAST_SHARE:
        return ""
    return (
        f"the stains disagree: {agreeing(figures):.0%} of the {judged} pairs{where} agree better than {1 - CHANCE:.0%} "
        f"of shuffled pairs (required: {LEAST_SHARE:.0%}; by chance: {CHANCE:.0%}), so most do not show the same "
        "field or are displaced by more than an eighth of a tile; register them again, or check which files are paired"
    )


def _problems(figures: Sequence[PairFigures], crop: int) -> list[str]:
    small = [
        f"{f.pair.he} is {f.width} × {f.height} px: smaller than the crop of {crop} px; choose a smaller crop"
        for f in figures
        if not f.problem and min(f.height, f.width) < crop
    ]
    tiles = [f.tile for f in figures if f.tile]
    kinds = ([f.problem for f in figures if f.problem], small, same_images(tiles), shared_slides(tiles))
    return [sentence for kind in kinds for sentence in _first(kind)]


def _first(sentences: Sequence[str]) -> list[str]:
    more = len(sentences) - MOST_SENTENCES
    return [*sentences[:MOST_SENTENCES], f"and {more} more of the same kind"] if more > 0 else list(sentences)
