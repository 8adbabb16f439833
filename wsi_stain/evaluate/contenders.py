"""Contenders of an evaluation: models, folders of images from other tools, and baselines without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from wsi_stain.errors import ConfigError
from wsi_stain.evaluate.figures import FieldPixels
from wsi_stain.model.bundle import Bundle, TileGenerator
from wsi_stain.slide.readers.base import UnsupportedFormat
from wsi_stain.slide.readers.image import decode

BLUR_PX = 16.0
SHIFT_PX = 25
ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the table.

    Example:
        >>> lazy = Contender("white", lambda view: np.full_like(view.real, 255))
    """

    name: str
    answer: Callable[[FieldPixels], np.ndarray]
    """A field's virtual stain, uint8 (h, w, 3); or only the positivity of each pixel, float (h, w) in 0–1."""
    kind: Literal["model", "regressor", "images", "baseline"] = "model"
    """Baselines have no plots and no pictures in the report."""
    about: Mapping[str, str] = field(default_factory=dict)
    """For the report: version, sha256, origin."""


def from_bundle(bundle: Bundle, device: str) -> Contender:
    """A model, run on whole fields.

    Raises:
        BundleError: the weights do not match the network.
        DeviceError: the device does not exist.
    """
    generator = bundle.generator(device)
    about = {"version": bundle.version, "sha256": bundle.sha256}
    return Contender(bundle.name, lambda view: stain(generator, view.he), about=about)


def stain(generator: TileGenerator, he: np.ndarray) -> np.ndarray:
    """One field of any size: uint8 (h, w, 3) H&E → uint8 (h, w, 3).

    Sides that are not multiples of `generator.multiple` are mirrored at the bottom and right; the result is cropped.
    """
    h, w = he.shape[:2]
    padded = np.pad(he, ((0, -h % generator.multiple), (0, -w % generator.multiple), (0, 0)), "reflect")
    return generator(padded[None])[0, :h, :w]


def from_folder(folder: Path, names: Iterable[str]) -> Contender:
    """Images from another tool: one png, jpg or tif per field, named like its H&E (the extension may differ).

    Args:
        folder: folder with the images.
        names: names of the fields to evaluate, the stems of their H&E files.

    Raises:
        ConfigError: an image is missing, or two images have the same stem.
    """
    images: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in ENDINGS and images.setdefault(path.stem, path) != path:
            raise ConfigError(f"{images[path.stem]} and {path.name} have the same stem: keep only one of them")
    stems = list(names)
    duplicates = [name for name, n in Counter(stems).items() if n > 1]
    if duplicates:
        raise ConfigError(f"two fields are named {duplicates[0]}: --against needs H&E files with different names")
    missing = [name for name in stems if name not in images]
    if missing:
        raise ConfigError(
            f"{folder} lacks {len(missing)} of {len(stems)} images, first missing: {missing[0]}.png (or jpg, tif); "
            "provide one image per field, named like its H&E"
        )
    return Contender(
        folder.resolve().name, lambda view: _open(images[view.name], view), "images", {"folder": str(folder)}
    )


def _open(path: Path, view: FieldPixels) -> np.ndarray:
    try:
        pixels = decode(path).pixels
    except UnsupportedFormat as err:
        raise ConfigError(f"{path} {err}") from err
    if pixels.shape != view.real.shape:
        size, field_size = (f"{a.shape[1]} × {a.shape[0]}" for a in (pixels, view.real))
        raise ConfigError(f"{path} is {size} px but its field is {field_size} px: they must have the same size")
    return pixels


def baselines(mean_colour: np.ndarray | None) -> list[Contender]:
    """Baselines without a model: the first two do not use the real stain; the others show misalignment alone.

    Args:
        mean_colour: float (3,), mean stain colour of the training split, the most trivial prediction; None without a
            training split, which omits that row.
    """

    def blurred(view: FieldPixels) -> np.ndarray:
        return gaussian_filter(view.real, (BLUR_PX, BLUR_PX, 0))

    def shifted(view: FieldPixels) -> np.ndarray:
        return np.pad(view.real, ((SHIFT_PX, 0), (0, 0), (0, 0)), "reflect")[:-SHIFT_PX]

    rows = [
        ("the H&E itself", lambda view: view.he),
        (f"real stain blurred, σ = {BLUR_PX:.0f} px", blurred),
        (f"real stain shifted by {SHIFT_PX} px", shifted),
    ]
    if mean_colour is not None:
        colour = np.rint(mean_colour).astype(np.uint8)
        rows.insert(0, ("mean stain colour", lambda view: np.broadcast_to(colour, view.real.shape)))
    return [Contender(name, answer, "baseline") for name, answer in rows]


def mean_colour(images: Iterable[np.ndarray]) -> np.ndarray:
    """Mean of all pixels of uint8 (h, w, 3) images: float64 (3,), R, G, B; one image is held at a time."""
    total, pixels = np.zeros(3), 0
    for image in images:
        total += image.sum((0, 1), dtype=np.float64)
        pixels += image.shape[0] * image.shape[1]
    return total / pixels
