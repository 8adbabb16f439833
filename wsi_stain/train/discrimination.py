"""How well encoders distinguish pairs from unrelated crops on held-out tiles: ROC-AUC, accuracy, threshold, plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from scipy.stats import rankdata

from wsi_stain.errors import TrainingError
from wsi_stain.files.atomic import atomic_write
from wsi_stain.measure.metrics import IntervalEstimate
from wsi_stain.nn.pixels import to_tensor
from wsi_stain.pairs.neighbours import Neighbours
from wsi_stain.pairs.pair import Pair, load_pair
from wsi_stain.train.encoders import Encoders

MOST_CROPS = 1500
"""Larger sets are subsampled evenly, because every crop is compared with every other."""
ROUNDS = 200
JSON = "discrimination.json"
PLOT = "similarity.png"


@dataclass(frozen=True, slots=True)
class Discrimination:
    """Similarity of pairs and of negatives (unrelated crops), and the statistics derived from it.

    Args:
        auc: probability that a pair is more similar than a negative.
        accuracy: mean of the correctly classified shares of pairs and of negatives, at the best threshold.
        threshold: the best threshold, a cosine similarity.
        pairs: cosine similarities of H&E crops with their own stain.
        negatives: cosine similarities with the stain of other tiles that are not neighbours.
    """

    auc: IntervalEstimate
    accuracy: IntervalEstimate
    threshold: float
    pairs: np.ndarray
    negatives: np.ndarray


def auc(pairs: np.ndarray, negatives: np.ndarray) -> float:
    """Area under the ROC curve, by ranks (Mann and Whitney); ties count half."""
    ranks = rankdata(np.concatenate([pairs, negatives]))
    return float((ranks[: len(pairs)].mean() - (len(pairs) + 1) / 2) / len(negatives))


def best_threshold(pairs: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """The threshold with the best balanced accuracy, and that accuracy; similarities at or above it count as pairs."""
    candidates = np.unique(np.concatenate([pairs, negatives]))
    sensitivity = 1 - np.searchsorted(np.sort(pairs), candidates) / len(pairs)
    specificity = np.searchsorted(np.sort(negatives), candidates) / len(negatives)
    accuracy = (sensitivity + specificity) / 2
    best = int(accuracy.argmax())
    return float(candidates[best]), float(accuracy[best])


def negatives(pairs: Sequence[Pair]) -> np.ndarray:
    """bool (N, N): True where two tiles are far enough apart to count as unrelated.

    Raises:
        TrainingError: no two tiles are.
    """
    near = Neighbours(pairs, "neighbours").mask(pairs)
    np.fill_diagonal(near, True)
    if near.all():
        raise TrainingError(
            f"the {len(pairs)} held-out pairs contain no unrelated tiles: choose another pretrain.heldout"
        )
    return ~near


def discriminate(encoders: Encoders, pairs: Sequence[Pair], side: int, device: torch.device) -> Discrimination:
    """Evaluate encoders on all whole crops of `side` px of held-out tiles; deterministic.

    Args:
        encoders: in evaluation mode.
        pairs: held-out tiles.
        side: side of the crops, px.
        device: device to compute on.

    Raises:
        TrainingError: as `negatives`.
    """
    is_negative = negatives(pairs)
    crops = [(i, *both) for i, pair in enumerate(pairs) for both in _cut(pair, side)]
    crops = crops[:: -(-len(crops) // MOST_CROPS)]
    numbers, he, ihc = zip(*crops, strict=True)
    tiles = np.array(numbers)
    similarity = _embed(encoders.he, he, device) @ _embed(encoders.ihc, ihc, device).T
    is_negative = is_negative[np.ix_(tiles, tiles)]

    def split(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        block = similarity[np.ix_(chosen, chosen)]
        return similarity[chosen, chosen], block[is_negative[np.ix_(chosen, chosen)]]

    everything = split(np.arange(len(crops)))
    return Discrimination(
        _over_tiles(lambda chosen: auc(*split(chosen)), tiles),
        _over_tiles(lambda chosen: best_threshold(*split(chosen))[1], tiles),
        best_threshold(*everything)[0],
        *everything,
    )


def _over_tiles(statistic: Callable[[np.ndarray], float], tiles: np.ndarray) -> IntervalEstimate:
    """A statistic of crops with its 95 % bootstrap interval, resampling whole tiles."""
    members = [np.flatnonzero(tiles == tile) for tile in np.unique(tiles)]
    rng = np.random.default_rng(0)
    rounds = (rng.integers(len(members), size=len(members)) for _ in range(ROUNDS))
    # A round that draws a single tile has no negatives.
    draws = [statistic(np.concatenate([members[i] for i in drawn])) for drawn in rounds if len(set(drawn)) > 1]
    return IntervalEstimate(statistic(np.arange(len(tiles))), *map(float, np.percentile(draws, [2.5, 97.5])))


def save(result: Discrimination, folder: Path, split: str) -> None:
    """Write discrimination.json and similarity.png."""
    figures = {name: dataclasses.asdict(getattr(result, name)) for name in ("auc", "accuracy")}
    facts = {"threshold": result.threshold, "pairs": len(result.pairs), "split": split}
    atomic_write(folder / JSON, json.dumps(figures | facts, indent=1) + "\n")
    _plot(result, folder / PLOT)


def _plot(result: Discrimination, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(min(result.pairs.min(), result.negatives.min()), 1, 60)
    for values, name, colour in ((result.negatives, "unrelated crops", "0.6"), (result.pairs, "pairs", "tab:brown")):
        axes.hist(values, bins, density=True, alpha=0.7, label=f"{name} ({len(values):,})", color=colour)
    axes.axvline(result.threshold, color="black", lw=1, label=f"threshold {result.threshold:.2f}")
    axes.set(
        xlabel="cosine similarity of H&E and stain",
        ylabel="density",
        title=f"ROC-AUC {result.auc.value:.3f}, balanced accuracy {result.accuracy.value:.1%}",
    )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _cut(pair: Pair, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    he, ihc = load_pair(pair)
    for y in range(0, he.shape[0] - side + 1, side):
        for x in range(0, he.shape[1] - side + 1, side):
            yield he[y : y + side, x : x + side], ihc[y : y + side, x : x + side]


@torch.no_grad()
def _embed(encoder: torch.nn.Module, crops: Sequence[np.ndarray], device: torch.device) -> np.ndarray:
    parts = [encoder(to_tensor(np.stack(crops[i : i + 64]), device)) for i in range(0, len(crops), 64)]
    return F.normalize(torch.cat(parts).float(), dim=1).cpu().numpy()
