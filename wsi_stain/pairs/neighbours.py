"""Tiles that show nearly the same tissue, which would be false negatives in contrastive training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsi_stain.config.train import Exclusion
from wsi_stain.pairs.pair import Pair


class Neighbours:
    """Finds the negatives to exclude in a batch.

    Args:
        pairs: all tiles that batches are drawn from; the smallest distance of two columns or rows of tiles of a slide
            counts as the distance of neighbours.
        exclude: `none`; `neighbours`: crops of the same tile and of tiles that touch it (tiles without coordinates have
            no known neighbours); `slide`: crops of the same slide.
    """

    def __init__(self, pairs: Sequence[Pair], exclude: Exclusion) -> None:
        self._exclude = exclude
        self._pitch = {
            slide: _pitch([p for p in pairs if p.slide_id == slide]) for slide in {p.slide_id for p in pairs}
        }

    def mask(self, pairs: Sequence[Pair]) -> np.ndarray:
        """bool (N, N): where the pairs of row and column are too close to count as unrelated; False on the diagonal."""
        mask = np.array([[self._are_near(a, b) for b in pairs] for a in pairs])
        np.fill_diagonal(mask, False)
        return mask

    def _are_near(self, a: Pair, b: Pair) -> bool:
        if self._exclude == "none":
            return False
        if a.he == b.he:
            return True
        if not a.slide_id or a.slide_id != b.slide_id:
            return False
        if self._exclude == "slide":
            return True
        if a.x is None or b.x is None or a.y is None or b.y is None:
            return False
        return max(abs(a.x - b.x), abs(a.y - b.y)) <= self._pitch[a.slide_id]


def _pitch(pairs: Sequence[Pair]) -> int:
    """The smallest distance, in level-0 px, between two columns or rows of one slide's tiles; 0 if none is known."""
    steps = [
        int(step)
        for values in ([p.x for p in pairs if p.x is not None], [p.y for p in pairs if p.y is not None])
        for step in np.diff(np.unique(values))
    ]
    return min(steps, default=0)
