"""The picture that every made slide shows, and how far the pixels of a reader are from it.

Red waves run along x, green ones along y, all of one wavelength; the mean over any box of a wave keeps its phase, so
that the phase of what was read tells its displacement to hundredths of a pixel, at every scale. Blue is a slow ramp
along both, which tells far displacements and confused colours.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

WAVE = 256
"""Wavelength in level-0 px: 16 px of a view at a sixteenth."""
WHITE = 255
TILE = 256


@dataclass
class Built:
    """A slide that was built, and what is right for it."""

    path: Path
    truth: np.ndarray
    """uint8 (h, w, 3): level 0 within the bounds, white where nothing was scanned."""
    mpp: float | None
    magnification: float | None = None
    bounds: tuple[int, int, int, int] | None = None
    """(x, y, w, h) in the file's level 0; `None` if the whole level was scanned."""
    tolerance: float = 2.0
    """Largest mean error of a view in grey levels: that of the codec, and of areas that begin between pixels."""
    format: str = ""
    codec: str = "JPEG"
    planes: int = 1
    refused: str = ""
    """Words of the sentence that refuses it; empty if it is read."""
    notes: list[str] = field(default_factory=list)


def picture(h: int, w: int) -> np.ndarray:
    """uint8 (h, w, 3)."""
    y, x = (np.arange(n, dtype=np.float64) + 0.5 for n in (h, w))
    red = np.broadcast_to(140 + 80 * np.sin(2 * np.pi * x / WAVE), (h, w))
    green = np.broadcast_to((130 + 80 * np.sin(2 * np.pi * y / WAVE))[:, None], (h, w))
    blue = 60 + 60 * (x / w)[None, :] + 90 * (y / h)[:, None]
    return np.stack([red, green, blue], -1).round().astype(np.uint8)


def reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor × factor pixels; the rest of a row or column is dropped, as scanners do."""
    h, w = (n // factor for n in pixels.shape[:2])
    boxes = pixels[: h * factor, : w * factor].reshape(h, factor, w, factor, 3)
    return (boxes.mean(axis=(1, 3)) + 0.5).astype(np.uint8)


def displacement(pixels: np.ndarray, truth: np.ndarray, factor: int) -> float:
    """The largest displacement of any window of a view from the truth, in level-0 px.

    Args:
        pixels: what was read, uint8 (h, w, 3), at `factor` level-0 px per px.
        truth: level 0.
        factor: level-0 px per px.
    """
    right, wave = reduced(truth, factor), WAVE // factor
    h, w = (min(a, b) for a, b in zip(pixels.shape[:2], right.shape[:2], strict=True))
    worst = 0.0
    for y in range(0, h - 2 * wave + 1, wave):
        for x in range(0, w - 2 * wave + 1, wave):
            window = np.s_[y : y + 2 * wave, x : x + 2 * wave]
            if right[window].max() == WHITE:  # the waves end at 220: something was not scanned here
                continue
            for channel, axis in ((0, 1), (1, 0)):
                turn = _phase(pixels[window][..., channel], axis, wave) - _phase(
                    right[window][..., channel], axis, wave
                )
                worst = max(worst, abs((turn + np.pi) % (2 * np.pi) - np.pi) / (2 * np.pi) * WAVE)
    return worst


def _phase(channel: np.ndarray, axis: int, wave: int) -> float:
    line = channel.mean(axis=1 - axis)
    return float(np.angle(((line - line.mean()) * np.exp(-2j * np.pi * np.arange(len(line)) / wave)).sum()))


def jpeg(pixels: np.ndarray, quality: int = 95, **options: object) -> bytes:
    """A JPEG without chroma subsampling, unless `options` for Pillow say otherwise."""
    file = io.BytesIO()
    options = options if options.get("keep_rgb") else {"subsampling": 0, **options}
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def tiles(pixels: np.ndarray, side: int = TILE) -> Iterator[np.ndarray]:
    """All tiles, row by row; beyond the border the last pixels are repeated."""
    h, w = pixels.shape[:2]
    whole = np.pad(pixels, ((0, -h % side), (0, -w % side), (0, 0)), mode="edge")
    for y in range(0, h, side):
        for x in range(0, w, side):
            yield np.ascontiguousarray(whole[y : y + side, x : x + side])
