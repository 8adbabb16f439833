"""H-DAB pictures of known densities: `background · 10^-(h · hematoxylin + d · dab)`."""

import numpy as np

from wsi_stain.measure.palette import RUIFROK_DAB, RUIFROK_HEMATOXYLIN


def paint(hematoxylin, dab, *, background=(240, 240, 240), vectors=(RUIFROK_HEMATOXYLIN, RUIFROK_DAB)):
    """Densities, float (h, w) each → uint8 (h, w, 3)."""
    od = sum(np.asarray(d)[..., None] * np.asarray(v) for d, v in zip((hematoxylin, dab), vectors, strict=True))
    return np.rint(np.asarray(background) * 10.0**-od).clip(0, 255).astype(np.uint8)


def patchwork(h, w, seed=0, side=16):
    """Squares of random hematoxylin and DAB, a third of them empty: two float (h, w)."""
    rng = np.random.default_rng(seed)
    n = (-(-h // side), -(-w // side))
    kind = rng.integers(0, 3, n)
    blue = np.where(kind > 0, rng.uniform(0.1, 0.6, n), 0)
    brown = np.where(kind > 1, rng.uniform(0.1, 0.9, n), 0)
    return tuple(np.repeat(np.repeat(v, side, 0), side, 1)[:h, :w] for v in (blue, brown))
