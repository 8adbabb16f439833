"""Draws docs/failures.jpg and prints its table: the default model on drawn fields that it should not be trusted on.

    PYTHONPATH=. python docs/scripts/failures.py

Every field is a drawing (`wsi_stain.phantom`), changed in one way. The verdict is that of `convert` on the field.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from wsi_stain import Bundle, phantom
from wsi_stain.geometry import Box, Size
from wsi_stain.measure.deconvolution import POSITIVE_OD, dab
from wsi_stain.measure.palette import RUIFROK_DAB, RUIFROK_HEMATOXYLIN
from wsi_stain.trust.portrait import portrait
from wsi_stain.trust.verdict import judge

SIDE = 512
"""Side of a field in px, at the model's 1.0 µm/px."""
WHOLE = Size(3072, 3072)
PLACE = (1200, 1300)
"""Row and column of the field on the drawn section."""
SHOWN = 300
"""Side of a panel in px, the middle of the field at 1:1."""
BACKGROUND = (243, 243, 243)


def drawn(mpp: float = 1.0) -> np.ndarray:
    """A field of the drawn section, uint8 (SIDE, SIDE, 3)."""
    factor = 1 / mpp
    at = Box.at(round(PLACE[0] * factor), round(PLACE[1] * factor), Size(SIDE, SIDE))
    return phantom.render(at, size=Size(round(WHOLE.h * factor), round(WHOLE.w * factor)), mpp=mpp, seed=2)


def density_times(image: np.ndarray, factor: float) -> np.ndarray:
    """The same dyes, `factor` times as dense."""
    transmitted = np.clip(image.astype(float) / BACKGROUND, 1 / 255, 1)
    return np.rint(transmitted**factor * BACKGROUND).clip(0, 255).astype(np.uint8)


def with_ink(image: np.ndarray) -> np.ndarray:
    """A stroke of a blue pen across the field."""
    inked = cv2.line(image.copy(), (60, 420), (460, 110), (40, 60, 150), 46, cv2.LINE_AA)
    return cv2.addWeighted(inked, 0.85, image, 0.15, 0)


def with_fold(image: np.ndarray) -> np.ndarray:
    """A band in which the tissue lies twice: the densities of both layers add."""
    above = np.roll(image, 70, axis=0).astype(float) / BACKGROUND
    both = np.rint(image.astype(float) * above).clip(0, 255).astype(np.uint8)
    band = np.abs(np.arange(SIDE)[:, None] - SIDE / 2 - 40 * np.sin(np.arange(SIDE) / 90)) < 36
    return np.where(band[..., None], both, image)


def immunostain() -> np.ndarray:
    """A field of a real kind of mistake: an immunostain given as H&E (hematoxylin, and DAB where eosin was)."""
    rgb = drawn().astype(float) / BACKGROUND
    density = -np.log10(np.clip(rgb, 1 / 255, 1))
    blue, pink = density[..., 0], np.clip(density[..., 1] - density[..., 0], 0, None)
    mixed = blue[..., None] * np.asarray(RUIFROK_HEMATOXYLIN) + 1.5 * pink[..., None] * np.asarray(RUIFROK_DAB)
    return np.rint(np.asarray(BACKGROUND) * 10**-mixed).clip(0, 255).astype(np.uint8)


FIELDS = {
    "as drawn": drawn,
    "1.7 times as dense": lambda: density_times(drawn(), 1.7),
    "half as dense": lambda: density_times(drawn(), 0.5),
    "out of focus (σ = 2 µm)": lambda: cv2.GaussianBlur(drawn(), (0, 0), 2),
    "0.5 µm/px given as 1.0": lambda: drawn(0.5),
    "a stroke of a pen": lambda: with_ink(drawn()),
    "a fold": lambda: with_fold(drawn()),
    "an immunostain, not H&E": immunostain,
}
"""What the column shows → the field."""


def panel(name: str, he: np.ndarray, stain: np.ndarray) -> np.ndarray:
    """H&E above its virtual stain, with a caption."""
    low = (SIDE - SHOWN) // 2
    middle = slice(low, low + SHOWN)
    head = np.full((26, SHOWN, 3), 255, np.uint8)
    text = name.replace("σ", "s").replace("µ", "u")  # the fonts of OpenCV hold ASCII only
    cv2.putText(head, text, (2, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    gap = np.full((4, SHOWN, 3), 255, np.uint8)
    return np.vstack([head, he[middle, middle], gap, stain[middle, middle], gap])


def main() -> None:
    """Write the picture and print the table of the page."""
    bundle = Bundle.open()
    generator = bundle.generator(device="cpu", precision="fp32")
    trained = bundle.trust.figures if bundle.trust else None
    panels = []
    for name, field in FIELDS.items():
        he = field()
        stain = generator(he[None])[0]
        share = float((dab(stain, bundle.background) >= POSITIVE_OD).mean())
        verdict = judge(portrait([he], BACKGROUND, 1.0), trained)
        print(f"| {name} | {100 * share:.0f} % | {verdict.level} | {'; '.join(verdict.reasons) or '–'} |", flush=True)
        panels.append(panel(name, he, stain))
    gap = np.full((panels[0].shape[0], 6, 3), 255, np.uint8)
    rows = [np.hstack([part for p in panels[i : i + 4] for part in (p, gap)]) for i in (0, 4)]
    picture = cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(Path(__file__).parents[1] / "failures.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 80])


if __name__ == "__main__":
    main()
