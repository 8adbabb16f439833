"""An endless stream of paired crops from both stains; image number k depends only on the seed and on k.

A resumed training and each of several processes therefore get the same crops as a single uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from skimage.color import hed_from_rgb, rgb_from_hed
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from wsi_stain.config.train import AugmentConfig
from wsi_stain.errors import TrainingError
from wsi_stain.pairs.pair import Pair, load_pair, read_pair
from wsi_stain.train.augment import draw_change

Images = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Crops:
    """An endless, shuffled stream of paired crops.

    Args:
        pairs: the pairs to draw from; each epoch uses every pair once.
        side: side of the crops, px.
        seed: determines order, position, flips, rotations and stain jitter.
        turns: rotate by multiples of 90° in addition to flips.
        stain_jitter: see `jitter_stain`; applied to the H&E only.
        augment: further changes, most of the H&E only; see `train.augment`.

    Example:
        >>> he, ihc = Crops(tuple(pairs), side=256, seed=0).batch(first=0, n=8)  # doctest: +SKIP
    """

    pairs: tuple[Pair, ...]
    side: int
    seed: int
    turns: bool = True
    stain_jitter: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def batch(self, first: int, n: int) -> Images:
        """Images `first` to `first + n - 1`: two uint8 arrays (N, side, side, 3)."""
        crops = [self[i] for i in range(first, first + n)]
        return np.stack([he for he, _ in crops]), np.stack([ihc for _, ihc in crops])

    def pair(self, number: int) -> Pair:
        """The pair that image `number` is cut from."""
        epoch, position = divmod(number, len(self.pairs))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.pairs))
        return self.pairs[order[position]]

    def __getitem__(self, number: int) -> Images:
        """Image `number` of the stream: the same window, flip and rotation for both stains."""
        rng = np.random.default_rng([self.seed, 1, number])
        pair = self.pair(number)
        # Workers serve sets that do not fit in memory; a cache in each worker would exhaust it.
        he, ihc = read_pair(pair) if get_worker_info() else load_pair(pair)
        h, w = he.shape[:2]
        if min(h, w) < self.side:
            raise TrainingError(
                f"{pair.he} is {h}x{w} px: smaller than the crop of {self.side} px; choose a smaller crop"
            )
        change = draw_change(self.augment, np.random.default_rng([self.seed, 2, number]))
        window = change.window(self.side, min(h, w))
        y, x = rng.integers(h - window + 1), rng.integers(w - window + 1)
        turns, flip = int(rng.integers(4)) if self.turns else 0, bool(rng.integers(2))
        he, ihc = (_orient(a[y : y + window, x : x + window], turns, flip) for a in (he, ihc))
        he, ihc = change.resized(he, self.side), change.resized(ihc, self.side)
        return change.applied(jitter_stain(he, self.stain_jitter, rng) if self.stain_jitter else he), ihc


def _orient(image: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    turned = np.rot90(image, turns)
    return turned[:, ::-1] if flip else turned


def jitter_stain(he: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Vary the stain intensities of an H&E image slightly.

    Each of hematoxylin, eosin and the residual is scaled by 1 ± `strength` and shifted by ± a tenth of it, in optical
    density (Tellez et al., "Whole-slide mitosis detection in H&E breast histology", 2018, section III-B).

    Args:
        he: uint8 (h, w, 3).
        strength: largest relative change; 0 leaves the image unchanged.
        rng: source of one random change for the whole image.

    Returns:
        uint8 (h, w, 3).
    """
    density = -np.log10(np.maximum(he, 1).astype(np.float32) / 255) @ hed_from_rgb.astype(np.float32)
    scale, shift = (rng.uniform(-strength, strength, 3).astype(np.float32) for _ in range(2))
    changed = (density * (1 + scale) + shift / 10) @ rgb_from_hed.astype(np.float32)
    return np.rint(np.clip(255 * 10**-changed, 0, 255)).astype(np.uint8)


def stream(crops: Crops, batches: Iterator[range], workers: int) -> Iterator[Images]:
    """Decode the crops of each range of numbers ahead of use in `workers` processes (0: in the caller).

    Yields:
        H&E and stain, uint8 (N, side, side, 3) each.
    """
    loader: DataLoader[Images] = DataLoader(
        crops,  # type: ignore[arg-type] - a loader needs only a map from numbers to crops
        batch_sampler=batches,  # type: ignore[arg-type] - endless: it has no length
        num_workers=workers,
        collate_fn=_collate,
        multiprocessing_context="spawn" if workers else None,
    )
    for he, ihc in loader:
        yield he.numpy(), ihc.numpy()


def _collate(crops: list[Images]) -> tuple[Tensor, Tensor]:
    # Tensors, because loaders pass them between processes in shared memory.
    he, ihc = (torch.from_numpy(np.stack(images)) for images in zip(*crops, strict=True))
    return he, ihc


def numbers(first: int, total: int, batch: int, *, rank: int = 0, world: int = 1) -> Iterator[range]:
    """Image numbers of each step, starting at `first`; each of several processes gets its own share of every batch."""
    share = batch // world
    for start in range(first, total, batch):
        yield range(start + rank * share, start + (rank + 1) * share)
