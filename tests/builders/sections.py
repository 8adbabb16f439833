"""Two pictures of one section, drawn for tests: the second is the first, warped in a known way and restained."""

from dataclasses import dataclass

import cv2
import numpy as np

from wsi_stain.registration.affine import Affine
from wsi_stain.registration.field import Deformation
from wsi_stain.registration.images import Picture
from wsi_stain.registration.structure import places
from wsi_stain.registration.transform import Piece

UM = 8.0


@dataclass(frozen=True, eq=False)
class MadePair:
    """The second picture shows at `truth(p)` what the first shows at p."""

    he: Picture
    ihc: Picture
    truth: Piece


def section(seed: int, side: int = 640) -> Picture:
    """Tissue of an irregular shape with nests of nuclei at several sizes, 8 µm per px."""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.GaussianBlur(rng.standard_normal((side, side)).astype(np.float32), (0, 0), s) * s for s in (1.2, 3, 8)
    ]
    density = np.clip(0.5 + 0.25 * sum(layers), 0.05, 1)
    y, x = np.mgrid[:side, :side] / side - 0.5
    edge = 0.4 + 0.05 * np.sin(3 * np.arctan2(y, x) + seed) + 0.03 * np.cos(5 * np.arctan2(y, x) - seed)
    tissue = np.hypot(1.2 * y, x) < edge
    return Picture(np.where(tissue, density, 0).astype(np.float32), tissue, UM)


def made_pair(
    seed: int = 0, *, degrees: float = 140.0, mirrored: bool = False, bend_um: float = 300.0, ihc_um: float = UM
) -> MadePair:
    """A section, and the same section turned, stretched by 3 %, bent, with noise, a tear and a missing piece.

    The second is drawn at `ihc_um` µm per px.
    """
    he = section(seed)
    side = he.density.shape[0]
    rng = np.random.default_rng(seed + 1)
    coarse = [cv2.GaussianBlur(rng.standard_normal((40, 40)), (0, 0), 7.0) for _ in "yx"]
    bends = np.stack([c / np.abs(c).max() for c in coarse], -1) * bend_um
    truth = Piece(
        Affine.turned(degrees, mirrored=mirrored, about=he.centre, to=he.centre + np.array([70.0, -40.0]))
        @ Affine(np.array([[1.03, 0, -70.0], [0, 1.0, 0]])),
        Deformation(bends.astype(np.float32), side * UM / 40),
    )
    grid = places((round(side * UM / ihc_um),) * 2, ihc_um)
    back = truth.inverse(grid.astype(np.float64)) / UM - 0.5
    density, tissue = (
        cv2.remap(a, back[..., 1].astype(np.float32), back[..., 0].astype(np.float32), cv2.INTER_LINEAR)
        for a in (he.density, he.tissue.astype(np.float32))
    )
    inside = tissue > 0.5
    y, x = np.moveaxis(grid, -1, 0) / UM
    inside[(x > 300) & (x < 303)] = False  # a tear
    inside[(np.minimum(y, x) > 100) & (np.maximum(y, x) < 180)] = False  # a missing piece
    stained = 0.6 * density**1.5 + 0.03 * rng.standard_normal(density.shape)  # paler, and not in proportion
    return MadePair(he, Picture(np.where(inside, np.clip(stained, 0, 1), 0).astype(np.float32), inside, ihc_um), truth)


def rgb(picture: Picture, vector: tuple[float, float, float] = (0.65, 0.70, 0.29)) -> np.ndarray:
    """A picture as a scanner sees it: uint8 (h, w, 3), its density in one stain on a background of 243."""
    return np.rint(243 * 10 ** (-(picture.density**2)[..., None] * 1.5 * np.array(vector))).astype(np.uint8)
