"""Tiles of H&E with nuclei, and of other stains, whose pixels are mixed from densities."""

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.color import rgb_from_hed


def tile(side=256, *, seed=0, vectors=None, strength=1.0, radius=3.0, blur=0.0, background=(243, 243, 243)):
    """Round nuclei in a textured ground: uint8 (side, side, 3).

    Args:
        side: px.
        seed: of places and texture.
        vectors: of nuclei and ground; hematoxylin and eosin by default.
        strength: factor of all densities.
        radius: of a nucleus in px.
        blur: σ in px of a Gaussian over the finished tile.
        background: colour of the empty slide.
    """
    rng = np.random.default_rng(seed)
    elsewhere = np.ones((side, side), bool)
    elsewhere[tuple(rng.integers(0, side, (2, side * side // 400)))] = False
    nuclei = np.clip(radius + 0.5 - distance_transform_edt(elsewhere), 0, 1)
    ground = 0.25 + 0.1 * gaussian_filter(rng.normal(size=(side, side)), 0.8)
    first, second = rgb_from_hed[:2] if vectors is None else np.asarray(vectors)
    od = strength * (
        0.5 * nuclei[..., None] * first + np.maximum(ground, 0)[..., None] * (1 - 0.6 * nuclei[..., None]) * second
    )
    image = np.asarray(background) * 10.0**-od
    image = gaussian_filter(image, (blur, blur, 0)) if blur else image
    return np.rint(image).clip(0, 255).astype(np.uint8)
