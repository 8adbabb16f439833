"""Who is judged: models, folders of images that other tools made, and baselines that need no model at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from wsi_stain.config.loader import load
from wsi_stain.config.model import BundleConfig, BundleWeights
from wsi_stain.config.train import TrainConfig
from wsi_stain.errors import BundleError, ConfigError
from wsi_stain.evaluate.figures import View
from wsi_stain.model.bundle import WEIGHTS, Bundle, Generator, sha256_of

BLUR_PX = 16.0
SHIFT_PX = 25
ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
EIGHT_BITS = {"RGB", "RGBA", "L", "P"}
"""Pillow's modes that turn into RGB without loss of range."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the table.

    Example:
        >>> lazy = Contender("white", lambda view: np.full_like(view.real, 255))
    """

    name: str
    answer: Callable[[View], np.ndarray]
    """A field's virtual stain, uint8 (h, w, 3); or only how positive each pixel is, float (h, w) in 0–1."""
    kind: Literal["model", "regressor", "images", "baseline"] = "model"
    """Baselines have no plots and no pictures in the report."""
    about: Mapping[str, str] = field(default_factory=dict)
    """For the report: version, sha256, where it came from."""


def from_bundle(bundle: Bundle, device: str) -> Contender:
    """A model, run on whole fields.

    Raises:
        BundleError: the weights do not fit the network.
        DeviceError: the device is not there.
    """
    generator = bundle.generator(device)
    about = {"version": bundle.version, "sha256": bundle.sha256}
    return Contender(bundle.name, lambda view: stain(generator, view.he), about=about)


def stain(generator: Generator, he: np.ndarray) -> np.ndarray:
    """One field of any size: uint8 (h, w, 3) H&E → uint8 (h, w, 3).

    Sides that the generator cannot take are grown below and on the right by mirroring, and cut off again.
    """
    h, w = he.shape[:2]
    grown = np.pad(he, ((0, -h % generator.multiple), (0, -w % generator.multiple), (0, 0)), "reflect")
    return generator(grown[None])[0, :h, :w]


def unpacked(run: Path) -> Bundle:
    """The generator of a training run as a bundle that was never packed: full precision, named as the run's folder.

    Raises:
        BundleError: the run has no generator yet, or one that makes no images.
        ConfigError: its config.yaml is broken.
    """
    if not (run / WEIGHTS).is_file():
        raise BundleError(f"{run} holds no finished training ({WEIGHTS} is missing): run wsi-stain train first")
    config = load(TrainConfig, run / "config.yaml")
    if config.generator.kind != "ceff":
        raise BundleError(f"{run} holds a {config.generator.kind} generator, which draws no picture: use --regressor")
    spec = BundleConfig(
        name=run.resolve().name,
        version="unpacked",
        generator=config.generator,
        input=config.input,
        output=config.output,
        weights=BundleWeights(WEIGHTS, sha256_of(run / WEIGHTS)),
    )
    return Bundle(spec, run)


def from_folder(folder: Path, names: Iterable[str]) -> Contender:
    """Images that another tool made: for each field a png, jpg or tif with the name of its H&E (endings may differ).

    Args:
        folder: of the images.
        names: of the fields to be judged, the stems of their H&E files.

    Raises:
        ConfigError: no such folder, an image missing, or two for one name.
    """
    images: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in ENDINGS and images.setdefault(path.stem, path) != path:
            raise ConfigError(f"{images[path.stem]} and {path.name} have one stem: keep one of them")
    wanted = list(names)
    twice = [name for name, n in Counter(wanted).items() if n > 1]
    if twice:
        raise ConfigError(f"two fields are called {twice[0]}: --against needs H&E files with different names")
    missing = [name for name in wanted if name not in images]
    if missing:
        raise ConfigError(
            f"{folder} lacks {len(missing)} of {len(wanted)} images, first {missing[0]}.png (or jpg, tif): "
            "it needs one for each field, with the name of its H&E"
        )
    return Contender(
        folder.resolve().name, lambda view: _open(images[view.name], view), "images", {"folder": str(folder)}
    )


def _open(path: Path, view: View) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode not in EIGHT_BITS:
                raise ConfigError(f"{path} has pixels of the kind {image.mode!r}: save it with 8 bits per channel")
            pixels = np.asarray(image.convert("RGB"))
    # Pillow's decoders raise the last three on broken files, not OSError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise ConfigError(f"cannot decode {path}: {err}; write it again") from err
    if pixels.shape != view.real.shape:
        found, wanted = (f"{a.shape[1]} × {a.shape[0]}" for a in (pixels, view.real))
        raise ConfigError(f"{path} is {found} px but its field is {wanted} px: they must have one size")
    return pixels


def baselines(mean_colour: np.ndarray | None) -> list[Contender]:
    """What needs no model: the first two see no real stain; the others show what misalignment alone costs.

    Args:
        mean_colour: float (3,), the training split's mean stain colour, what the laziest model would say; None where
            there is no training split, which leaves that row out.
    """

    def blurred(view: View) -> np.ndarray:
        return gaussian_filter(view.real, (BLUR_PX, BLUR_PX, 0))

    def shifted(view: View) -> np.ndarray:
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
