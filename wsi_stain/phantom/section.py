"""The layout of a phantom's section: its outline, its flow and its regions, as fields on a coarse lattice.

Each patch of the slide computes them independently, from coordinates in µm alone; `histology` draws on them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from wsi_stain.geometry import Size
from wsi_stain.phantom.noise import Points, noise, wall_distance

PATCH = 1024
"""Side of a patch in px."""
REACH = 150.0
"""Largest extent of a structure around its centre, in µm."""
_STEP = 16
"""Pixels between two points of the lattice on which fields are computed."""
_PERIOD = 1024
"""Side of the repeating textures in px; fields bend and shade them, so that the repetition is not visible."""


@dataclass(frozen=True, slots=True)
class Section:
    """Parameters of a section: size in px, µm per px, seed."""

    size: Size
    mpp: float
    seed: int

    @property
    def margin(self) -> int:
        """Pixels drawn around a patch, so that cells on its border are whole; a multiple of the lattice's step."""
        return _STEP * math.ceil(12 / self.mpp / _STEP)

    @property
    def scale(self) -> float:
        """Wavelength of the tissue's large regions in µm: small sections also show every kind."""
        return min(max(min(self.size) * self.mpp / 3.5, 220.0), 2200.0)

    def salt(self, name: str) -> int:
        """The salt of one random field of this section."""
        return self.seed * 1009 + sum(ord(c) * 131**i for i, c in enumerate(name)) % 1_000_003 * 7_919


@dataclass(slots=True)
class Patch:
    """A patch under construction: its lattice fields, and full-resolution maps with `margin` px around."""

    section: Section
    y0: int
    x0: int
    fields: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    fibre: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    edge: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    nuclei: list[np.ndarray] = field(default_factory=list)

    @property
    def side(self) -> int:
        """Side of the drawn area in px."""
        return PATCH + 2 * self.section.margin

    @property
    def pad(self) -> int:
        """Lattice points beyond the drawn area, for the spline and for centres of structures outside."""
        return 2 + math.ceil(REACH / (_STEP * self.section.mpp))

    def axis(self, start: int) -> np.ndarray:
        """Coordinates in µm of the lattice along one axis that starts at pixel `start`."""
        first = start - self.section.margin - self.pad * _STEP
        return (first + (np.arange(self.side // _STEP + 2 * self.pad) + 0.5) * _STEP) * self.section.mpp

    def corners(self, reach: float = 0.0) -> tuple[tuple[float, float], tuple[float, float]]:
        """First and last (y, x) in µm of the drawn area, `reach` µm around it included."""
        m, mpp = self.section.margin, self.section.mpp
        low = ((self.y0 - m) * mpp - reach, (self.x0 - m) * mpp - reach)
        return low, (low[0] + self.side * mpp + 2 * reach, low[1] + self.side * mpp + 2 * reach)

    def fine(self, name: str) -> np.ndarray:
        """A field at every drawn pixel, float32."""
        trim = self.pad - 2
        part = self.fields[name][trim : len(self.fields[name]) - trim, trim : self.fields[name].shape[1] - trim]
        full = cv2.resize(part.astype(np.float32), None, fx=_STEP, fy=_STEP, interpolation=cv2.INTER_LINEAR)
        return full[2 * _STEP : -2 * _STEP, 2 * _STEP : -2 * _STEP]

    def sample(self, name: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """A field at points given in µm, from the nearest point of the lattice."""
        step = _STEP * self.section.mpp
        f = self.fields[name]
        row = np.clip(np.rint((y - self.axis(self.y0)[0]) / step).astype(int), 0, f.shape[0] - 1)
        col = np.clip(np.rint((x - self.axis(self.x0)[0]) / step).astype(int), 0, f.shape[1] - 1)
        return f[row, col]

    def px(self, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in µm as (y, x) in px of the drawn area."""
        m, mpp = self.section.margin, self.section.mpp
        return y / mpp - (self.y0 - m) - 0.5, x / mpp - (self.x0 - m) - 0.5

    def material(self, at: Points) -> tuple[Points, np.ndarray]:
        """Those points that lie in the drawn area, and the label under each."""
        y, x = (np.rint(v).astype(int) for v in self.px(at.y, at.x))
        inside = (y >= 0) & (x >= 0) & (y < self.side) & (x < self.side)
        return at.where(inside), self.labels[y[inside], x[inside]]


def outline(patch: Patch) -> bool:
    """Compute `depth`: approximate distance in µm to the section's border, positive inside. False: only background."""
    section = patch.section
    y, x = patch.axis(patch.y0), patch.axis(patch.x0)
    half_h, half_w = (n * section.mpp / 2 for n in section.size)
    half = min(half_h, half_w)
    v, u = (y / half_h - 1)[:, None], (x / half_w - 1)[None, :]
    rho = (np.abs(u) ** 2.6 + np.abs(v) ** 2.6) ** (1 / 2.6)
    large = noise(y, x, half * 0.7, section.salt("lobes"))
    depth = half * (0.84 - rho + 0.10 * large)
    for wavelength, height in ((240.0, 26.0), (60.0, 8.0)):
        depth += min(height, 0.03 * half) * noise(y, x, min(wavelength, half / 3), section.salt(f"edge{wavelength}"))
    holes = noise(y, x, min(800.0, half / 3), section.salt("holes")) + 0.25 * noise(y, x, 70.0, section.salt("torn"))
    depth = np.minimum(depth, (1.95 - holes) * min(200.0, half / 8))
    corner = 1 if section.seed % 2 else -1
    piece = np.hypot(v * half_h - 0.86 * half_h, u * half_w + corner * 0.86 * half_w)
    patch.fields["depth"] = np.maximum(depth, 0.07 * half * (1 + 0.25 * large) - piece)
    return bool(patch.fields["depth"].max() > -20.0)


def flow(patch: Patch) -> None:
    """Compute `u` and `v`: lookup coordinates of the fibre texture, bent so that bundles flow and wave.

    Also `edge`: the distance in µm to the section's border, frayed by the fibres, positive inside.
    """
    y, x = patch.axis(patch.y0), patch.axis(patch.x0)
    for name, axis in (("u", x[None, :]), ("v", y[:, None])):
        bend = 190 * noise(y, x, 420.0, patch.section.salt(name)) + 11 * noise(y, x, 90.0, patch.section.salt(name * 2))
        patch.fields[name] = axis + bend
    along_y, along_x = np.gradient(patch.fields["v"])
    patch.fields["angle"] = np.arctan2(-along_x, along_y)
    patch.fibre = _fibres(patch)
    patch.edge = patch.fine("depth") + 9 * patch.fibre


def regions(patch: Patch) -> None:
    """Compute the fields of the tissue regions; positive inside a region."""
    section, fields = patch.section, patch.fields
    y, x, scale = patch.axis(patch.y0), patch.axis(patch.x0), patch.section.scale

    def wave(name: str, wavelength: float) -> np.ndarray:
        return noise(y, x, wavelength, section.salt(name))

    edge = 0.22 * wave("region edge", 90.0)
    fields["acinar"] = wave("acinar", scale) - 0.6 + edge
    fields["solid"] = np.where(fields["acinar"] > -0.15, -1.0, wave("solid", scale) - 0.2 + edge)
    other = np.maximum(fields["acinar"], fields["solid"])
    fields["gland"] = np.where(other > -0.1, -1.0, wave("gland", scale * 0.8) + 0.35)
    fields["nest"] = np.minimum(wave("nest", 130.0) + 0.55 * wave("nest size", 420.0) + 0.25, 4 * fields["solid"])
    fields["lymph"] = wave("lymph", 240.0) - 1.7 + 0.15 * wave("lymph edge", 40.0)
    fields["loose"] = wave("loose", 300.0) - 0.7 + edge
    shell = fields["depth"] / min(380.0, scale * 0.35)
    fields["fat"] = 0.8 * wave("fat", scale) - 0.1 - shell + edge
    fields["stain"] = 1.12 + 0.10 * wave("stain", 900.0)
    septa = wall_distance(y, x, 420.0, section.salt("lobule"))
    fields["septa"] = septa + 9 * wave("septa edge", 60.0) - 6


def _fibres(patch: Patch) -> np.ndarray:
    """The fibre texture along the flow at every drawn pixel: float32, -1 to 1."""
    # Whole periods are subtracted before the coordinates lose digits.
    mpp = patch.section.mpp
    u, v = (patch.fields[name] / mpp for name in ("u", "v"))
    patch.fields["u px"], patch.fields["v px"] = (c - _PERIOD * np.floor(c.min() / _PERIOD) for c in (u, v))
    texture = textures(mpp, patch.section.seed)[0]
    at_x, at_y = patch.fine("u px"), patch.fine("v px")
    # Nearest and a blur: bilinear with wrapping takes five times as long and looks the same.
    seen = cv2.blur(cv2.remap(texture, at_x, at_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_WRAP), (3, 3))
    return seen.astype(np.float32) * np.float32(1 / 127.5) - 1


def grain(section: Section, y0: int, x0: int, side: int) -> np.ndarray:
    """The grain of cytoplasm and chromatin at every drawn pixel: float32, -1 to 1."""
    top, left = (y0 - section.margin) % _PERIOD, (x0 - section.margin) % _PERIOD
    texture = textures(section.mpp, section.seed)[1][top : top + side, left : left + side]
    return texture.astype(np.float32) * np.float32(1 / 127.5) - 1


@functools.lru_cache(maxsize=4)
def textures(mpp: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fibres and grain, uint8, that repeat after `_PERIOD` (grain wider by a patch), and the camera's noise, int8."""
    random = np.random.Generator(np.random.PCG64(seed))
    bundles = _filtered(random, mpp, 55.0, 6.0) + 0.8 * _filtered(random, mpp, 30.0, 2.2)
    gaps = _filtered(random, mpp, 45.0, 6.0) + 0.4 * _filtered(random, mpp, 12.0, 3.0)
    fibres = _to_bytes(np.tanh(bundles / 2.2) - 1.3 * np.clip(gaps - 1.25, 0, 1))
    y, x = (np.arange(_PERIOD, dtype=np.float32)[shape] for shape in ((slice(None), None), (None, slice(None))))
    crimp = (y + _filtered(random, mpp, 30.0, 40.0) * (3.0 / mpp), x + np.zeros_like(y))
    fibres = cv2.remap(fibres, crimp[1], crimp[0], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    grain = _filtered(random, mpp, 1.3, 1.3) + 0.8 * _filtered(random, mpp, 4.0, 4.0)
    wide = np.pad(_to_bytes(grain / 2.5), ((0, PATCH + 256), (0, PATCH + 256)), mode="wrap")
    speckle = random.standard_normal((PATCH + 256, PATCH + 256, 3), np.float32) * np.float32(1.3)
    return fibres, wide, np.rint(speckle).astype(np.int8)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.rint((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)


def _filtered(random: np.random.Generator, mpp: float, along: float, across: float) -> np.ndarray:
    """Repeating Gaussian noise of unit variance with grains of along × across µm."""
    white = random.standard_normal((_PERIOD, _PERIOD), np.float32)
    fy, fx = np.fft.fftfreq(_PERIOD, mpp)[:, None], np.fft.rfftfreq(_PERIOD, mpp)[None, :]
    smooth = np.fft.irfft2(np.fft.rfft2(white) * np.exp(-2 * ((fx * along) ** 2 + (fy * across) ** 2)), s=white.shape)
    return (smooth / smooth.std()).astype(np.float32)
