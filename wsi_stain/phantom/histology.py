"""Rendering of the phantom: one patch of a procedural H&E section, computed from its coordinates alone.

A section is painted in fixed squares of pixels, each independently:

    fields (a coarse lattice)  →  materials (one label per pixel)  →  haematoxylin, eosin (optical density)  →  RGB

Structures that cross a patch's border are drawn identically in each patch that they touch. Lengths are in µm.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
from scipy.spatial import KDTree

from wsi_stain.phantom.noise import Points, hashed, noise, points, uniform, wall_distance
from wsi_stain.phantom.section import PATCH, REACH, Patch, Section, flow, grain, outline, regions, textures

BACKGROUND = (243, 243, 242)
"""Background colour, R G B, before camera noise."""
HAEMATOXYLIN, EOSIN = (0.490, 0.769, 0.410), (0.046, 0.842, 0.537)
"""Optical density of each stain in R, G, B: Ruifrok and Johnston 2001, the pair 'H&E 2' of ImageJ's plugin."""
OD_STEP = 1 / 120
"""Optical density of one grey level of a stain map; 255 of them exceed the density of any stain."""
BLOOD_TINT = (1.0, 0.93, 0.80)
"""Transmission of red cells in R, G, B in addition to their eosin: haemoglobin is orange."""
CELLS_MPP = 2.0
"""Above this many µm per px cells are not drawn individually: materials get the mean colour of their nuclei."""


class Material(IntEnum):
    """What a pixel is made of."""

    STROMA = 0
    LOOSE = 1
    CYTOPLASM = 2
    APICAL = 3
    LUMEN = 4
    NEST = 5
    ACINUS = 6
    ZYMOGEN = 7
    LYMPH = 8
    FAT_WALL = 9
    FAT = 10
    MUSCLE = 11
    PLASMA = 12
    BLOOD = 13
    CLEFT = 14


# Material: haematoxylin and eosin in OD, gain of the fibre texture, gain of the grain.
_LOOK = {
    Material.STROMA: (0.13, 0.34, 0.60, 0.25),
    Material.LOOSE: (0.09, 0.17, 0.85, 0.30),
    Material.CYTOPLASM: (0.27, 0.22, 0.10, 0.30),
    Material.APICAL: (0.13, 0.11, 0.00, 0.40),
    Material.LUMEN: (0.00, 0.012, 0.00, 0.50),
    Material.NEST: (0.26, 0.14, 0.10, 0.35),
    Material.ACINUS: (0.50, 0.20, 0.05, 0.30),
    Material.ZYMOGEN: (0.24, 0.42, 0.00, 0.45),
    Material.LYMPH: (0.22, 0.14, 0.30, 0.35),
    Material.FAT_WALL: (0.10, 0.24, 0.15, 0.40),
    Material.FAT: (0.00, 0.004, 0.00, 0.00),
    Material.MUSCLE: (0.16, 0.46, 0.40, 0.20),
    Material.PLASMA: (0.01, 0.10, 0.00, 0.30),
    Material.BLOOD: (0.02, 0.80, 0.00, 0.12),
    Material.CLEFT: (0.01, 0.04, 0.20, 0.30),
}


def tissue_patch(section: Section, y0: int, x0: int) -> np.ndarray:
    """Mask of the section in the patch whose first pixel is (y0, x0): bool (PATCH, PATCH)."""
    patch = Patch(section, y0, x0)
    if not outline(patch):
        return np.zeros((PATCH, PATCH), bool)
    flow(patch)
    return _core(patch, patch.edge > 0)


def paint_patch(section: Section, y0: int, x0: int) -> np.ndarray:
    """The patch whose first pixel is (y0, x0): uint8 (PATCH, PATCH, 3), sRGB."""
    patch = Patch(section, y0, x0)
    if not outline(patch):
        return _camera(section, np.full((PATCH, PATCH, 3), BACKGROUND, np.uint8), y0, x0)
    flow(patch)
    regions(patch)
    _paint_regions(patch)
    _paint_glands(patch)
    _paint_vessels(patch)
    _place_nuclei(patch)
    return _camera(section, _develop(patch), y0, x0)


def _paint_regions(patch: Patch) -> None:
    """Fill the label map with all regions, but not with objects."""
    labels = patch.labels = np.full((patch.side, patch.side), Material.STROMA, np.uint8)

    def present(name: str) -> bool:
        return bool(patch.fields[name].max() > -0.5)

    if present("loose"):
        labels[patch.fine("loose") + 0.8 * patch.fibre > 0] = Material.LOOSE
    if present("acinar"):
        walls = _cells(patch, 44.0, "acini", 2.0)
        acinar = (patch.fine("acinar") > 0) & (patch.fine("septa") > 6)
        parts = ((0.0, Material.CLEFT), (1.1, Material.ACINUS), (8.5, Material.ZYMOGEN))
        for from_wall, part in parts:
            labels[acinar & (walls > from_wall)] = part
    if present("nest"):
        labels[patch.fine("nest") > 0] = Material.NEST
    if present("lymph"):
        labels[patch.fine("lymph") + 0.3 * patch.fibre > 0] = Material.LYMPH
    if present("fat"):
        thickness = max(1.7, 0.45 * patch.section.mpp)
        inside = np.minimum(_cells(patch, 70.0, "fat cells", 1.0), patch.edge * 0.6) > thickness
        fat = patch.fine("fat") > 0
        labels[fat] = Material.FAT_WALL
        labels[fat & inside] = Material.FAT


def _cells(patch: Patch, pitch: float, name: str, wobble: float) -> np.ndarray:
    """Distance in µm to the walls of Voronoi cells, at every drawn pixel; computed at every fourth or second pixel."""
    mpp, m, step = patch.section.mpp, patch.section.margin, 4 if patch.section.mpp <= 1 else 2
    y, x = ((start - m + (np.arange(patch.side // step) + 0.5) * step) * mpp for start in (patch.y0, patch.x0))
    distance = wall_distance(y, x, pitch, patch.section.salt(name))
    distance += (wobble * noise(y, x, 14.0, patch.section.salt(name + " wobble"))).astype(np.float32)
    return cv2.resize(distance, (patch.side, patch.side), interpolation=cv2.INTER_LINEAR)


def _paint_glands(patch: Patch) -> None:
    """Glands: columnar epithelium with basal nuclei around a lumen."""
    centres, radius = _apart(patch, 140.0, "glands", 100.0)
    candidates = patch.sample("gland", centres.y, centres.x) > centres.draw(0, -0.9, 0.9)
    inside = np.minimum(
        patch.sample("depth", centres.y, centres.x) - radius, -patch.sample("fat", centres.y, centres.x) * 200
    )
    keep = candidates & (inside > 5) & (radius > 20) & (patch.sample("lymph", centres.y, centres.x) < 0)
    centres, radius = centres.where(keep), radius[keep]
    for i in range(len(radius)):
        one = centres.where(np.arange(len(radius)) == i)
        shape = _contour(one, radius[i])
        thickness = min(float(one.draw(20, 18, 32)[0]), 0.7 * radius[i])
        if one.draw(21)[0] < 0.4:
            _polygon(patch, shape, 2.0, Material.CLEFT)
        _polygon(patch, shape, 0.0, Material.CYTOPLASM)
        folds = int(one.draw(24, 4, 10)[0]) * shape.angles + one.draw(25, 0, 6.28)[0]
        apex = -thickness * (1 + one.draw(26, 0.05, 0.32)[0] * np.sin(folds))
        _polygon(patch, shape, 0.55 * apex, Material.APICAL if one.draw(22)[0] < 0.6 else Material.CYTOPLASM)
        _polygon(patch, shape, apex, Material.LUMEN if one.draw(23)[0] < 0.8 else Material.APICAL)
        patch.nuclei.append(_ring_of_nuclei(one, shape))


def _paint_vessels(patch: Patch) -> None:
    """Vessels: a muscular ring around plasma and red cells."""
    centres, radius = _apart(patch, 240.0, "vessels", 45.0)
    radius = radius * centres.draw(1, 0.25, 1.0)
    other = np.max([patch.sample(name, centres.y, centres.x) for name in ("acinar", "nest", "fat", "lymph")], axis=0)
    keep = (other < -0.05) & (patch.sample("depth", centres.y, centres.x) > radius) & (centres.draw(0) < 0.6)
    centres, radius = centres.where(keep), radius[keep]
    for i in range(len(radius)):
        one = centres.where(np.arange(len(radius)) == i)
        y, x = (np.rint(v).astype(int)[0] for v in patch.px(one.y, one.x))
        if 0 <= y < patch.side and 0 <= x < patch.side and patch.labels[y, x] not in (Material.STROMA, Material.LOOSE):
            continue
        shape = _contour(one, radius[i])
        _polygon(patch, shape, 0.0, Material.MUSCLE)
        _polygon(patch, shape, -max(2.0, 0.28 * radius[i]), Material.PLASMA)
    if patch.section.mpp > CELLS_MPP:
        patch.labels[patch.labels == Material.PLASMA] = Material.BLOOD
        return
    cells, label = patch.material(points(*patch.corners(), 6.3, patch.section.salt("red cells")))
    cells = cells.where((label == Material.PLASMA) & (cells.draw(0) < 0.8))
    for shape in _ellipses(
        patch, cells.y, cells.x, cells.draw(1, 2.6, 3.6), cells.draw(2, 2.2, 3.2), cells.draw(3, 0, 3.1)
    ):
        cv2.fillConvexPoly(patch.labels, shape, int(Material.BLOOD), cv2.LINE_8, 4)


def _apart(patch: Patch, pitch: float, name: str, largest: float) -> tuple[Points, np.ndarray]:
    """Centres around the patch, and for each a radius in µm that keeps it apart from the others."""
    low, high = patch.corners(REACH + 2 * pitch)
    centres = points(low, high, pitch, patch.section.salt(name))
    gaps = KDTree(np.stack([centres.y, centres.x], 1)).query(np.stack([centres.y, centres.x], 1), k=2)[0][:, 1]
    radius = np.minimum(0.46 * gaps, largest) * centres.draw(2, 0.75, 1.0)
    low, high = patch.corners(REACH)
    near = (centres.y > low[0]) & (centres.y < high[0]) & (centres.x > low[1]) & (centres.x < high[1])
    return centres.where(near), radius[near]


@dataclass(frozen=True, slots=True)
class _Contour:
    """A wobbly closed curve: centre (y, x), angles, radii, all in µm."""

    y: float
    x: float
    angles: np.ndarray
    radii: np.ndarray


def _contour(one: Points, radius: float) -> _Contour:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    wobble = np.zeros(64)
    for k, height in ((2, 0.17), (3, 0.08), (4, 0.05), (6, 0.03)):
        wobble += height * one.draw(4 + k)[0] * np.cos(k * angles + one.draw(11 + k, 0, 6.28)[0])
    return _Contour(float(one.y[0]), float(one.x[0]), angles, radius * (1 + wobble))


def _polygon(patch: Patch, shape: _Contour, grow: float | np.ndarray, material: Material) -> None:
    radii = np.maximum(shape.radii + grow, 0.15 * shape.radii)
    y, x = patch.px(shape.y + radii * np.sin(shape.angles), shape.x + radii * np.cos(shape.angles))
    cv2.fillPoly(patch.labels, [np.rint(np.stack([x, y], 1) * 16).astype(np.int32)], int(material), cv2.LINE_8, 4)


def _ring_of_nuclei(one: Points, shape: _Contour) -> np.ndarray:
    """Basal nuclei of a gland: rows of (y, x, semi-axis, semi-axis, angle, darkness)."""
    n = max(6, int(2 * np.pi * shape.radii.mean() / 5.6))
    row, col = np.broadcast_to(one.row * 4099 + one.col, n), np.arange(n)
    r = [uniform(row, col, one.salt + k) for k in range(5)]
    angles = (col + 0.7 * (r[0] - 0.5)) * 2 * np.pi / n
    radii = np.interp(angles, shape.angles, shape.radii, period=2 * np.pi) - 5.0 - 3.5 * r[1]
    y, x = shape.y + radii * np.sin(angles), shape.x + radii * np.cos(angles)
    return np.stack([y, x, 3.2 + 1.3 * r[2], 2.1 + 0.7 * r[3], angles + 0.5 * (r[4] - 0.5), 0.55 + 0.4 * r[2]], 1)


# Where: pitch of the grid in µm, share of its points taken, shorter and longer semi-axis in µm, darkness 0–1.
_NUCLEI = {
    Material.STROMA: (17.5, 0.5, (0.8, 1.5), (3.5, 7.0), (0.5, 0.95)),
    Material.LOOSE: (20.0, 0.55, (1.0, 2.0), (2.5, 5.0), (0.5, 0.9)),
    Material.NEST: (9.6, 0.97, (2.7, 3.6), (3.0, 4.1), (0.28, 0.62)),
    Material.ACINUS: (10.0, 0.85, (2.4, 3.0), (2.6, 3.3), (0.6, 0.9)),
    Material.LYMPH: (6.4, 0.95, (2.2, 2.8), (2.4, 3.1), (0.75, 1.0)),
    Material.MUSCLE: (12.0, 0.7, (0.9, 1.4), (3.5, 6.0), (0.6, 0.9)),
    Material.FAT_WALL: (16.0, 0.5, (0.8, 1.2), (2.5, 4.0), (0.6, 0.9)),
}


def _place_nuclei(patch: Patch) -> None:
    """Add the nuclei of every material present."""
    if patch.section.mpp > CELLS_MPP:
        return
    present = set(np.flatnonzero(np.bincount(patch.labels.ravel(), minlength=len(Material))))
    for material, (pitch, share, shorter, longer, darkness) in _NUCLEI.items():
        if material not in present:
            continue
        at, label = patch.material(points(*patch.corners(), pitch, patch.section.salt(material.name)))
        at = at.where((label == material) & (at.draw(0) < share))
        angle = patch.sample("angle", at.y, at.x) + at.draw(1, -0.35, 0.35)
        columns = (at.y, at.x, at.draw(2, *longer), at.draw(3, *shorter), angle, at.draw(4, *darkness))
        patch.nuclei.append(np.stack(columns, 1))


def _ellipses(
    patch: Patch, y: np.ndarray, x: np.ndarray, a: np.ndarray, b: np.ndarray, angle: np.ndarray
) -> np.ndarray:
    """Outlines for OpenCV: int32 (N, 12, 2) of (x, y) in sixteenths of a pixel."""
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    along, across = a[:, None] * np.cos(turn), b[:, None] * np.sin(turn)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    py, px = patch.px(y[:, None] + along * sin + across * cos, x[:, None] + along * cos - across * sin)
    return np.rint(np.stack([px, py], -1) * 16).astype(np.int32)


def _nuclear_map(patch: Patch) -> np.ndarray:
    """Darkness of the nuclei at every drawn pixel, uint8; pale ones have a dark membrane."""
    if patch.section.mpp > CELLS_MPP:
        return _lookup(patch.labels, np.array([_mean_darkness(m) for m in Material], np.float32))
    drawn = np.zeros((patch.side, patch.side), np.uint8)
    rows = np.concatenate(patch.nuclei) if patch.nuclei else np.zeros((0, 6))
    y, x = patch.px(rows[:, 0], rows[:, 1])
    m = patch.section.margin
    rows = rows[(y > -m) & (x > -m) & (y < patch.side + m) & (x < patch.side + m)]
    darkness = np.rint(rows[:, 5] * 230).astype(int).tolist()
    line = max(1, round(0.45 / patch.section.mpp))
    vesicular = patch.section.mpp <= 1.01
    # In batches: outlines of all nuclei at once take hundreds of megabytes at coarse scales.
    batches = (_ellipses(patch, *rows[i : i + 4096].T[:5]) for i in range(0, len(rows), 4096))
    for shape, dark in zip(itertools.chain.from_iterable(batches), darkness, strict=True):
        cv2.fillConvexPoly(drawn, shape, dark, cv2.LINE_8, 4)
        if vesicular and dark < 140:
            cv2.polylines(drawn, [shape], True, dark + 60, line, cv2.LINE_8, 4)
    sigma = max(0.55, 0.28 / patch.section.mpp)
    return cv2.GaussianBlur(drawn, (0, 0), sigma)


def _mean_darkness(material: Material) -> float:
    if material not in _NUCLEI:
        return 40.0 if material == Material.CYTOPLASM else 0.0
    pitch, share, shorter, longer, darkness = _NUCLEI[material]
    area = np.pi * np.mean(shorter) * np.mean(longer)
    return float(230 * np.mean(darkness) * share * area / pitch**2)


def _develop(patch: Patch) -> np.ndarray:
    """Convert materials to stain densities and colours: uint8 (PATCH, PATCH, 3)."""
    section = patch.section
    fibre, edge, grained = patch.fibre, patch.edge, grain(section, patch.y0, patch.x0, patch.side)
    look = np.array([_LOOK[m] for m in Material], np.float32)
    h, e, fibrous, grainy = (_lookup(patch.labels, column) for column in look.T)
    texture = 1 + fibrous * fibre + grainy * grained
    h, e = (cv2.GaussianBlur(v * texture, (3, 3), 0) for v in (h, e))
    nuclei = _nuclear_map(patch).astype(np.float32) * np.float32(1 / 255)
    h += nuclei * (1.45 + 0.45 * grained - h * 0.8)
    e *= 1 - 0.25 * nuclei
    shade = patch.fine("stain") * np.clip(edge / np.float32(1.2) + 0.5, 0, 1)
    maps = [np.clip(v * shade * np.float32(1 / OD_STEP), 0, 255).astype(np.uint8) for v in (h, e)]
    index = _core(patch, maps[0]).astype(np.uint16) << 8 | _core(patch, maps[1])
    rgb = cv2.cvtColor(np.take(_colours(), index).view(np.uint8).reshape(PATCH, PATCH, 4), cv2.COLOR_RGBA2RGB)
    blood = (_core(patch, patch.labels) == Material.BLOOD) & (_core(patch, edge) > 0)
    rgb[blood] = np.rint(rgb[blood] * np.array(BLOOD_TINT, np.float32)).astype(np.uint8)
    return rgb


def _lookup(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    table = np.zeros(256, np.float32)
    table[: len(values)] = values
    return cv2.LUT(labels, table)


@functools.cache
def _colours() -> np.ndarray:
    """RGB of every pair of stain levels, packed: uint32 (65536,), Beer–Lambert."""
    h, e = np.meshgrid(np.arange(256) * OD_STEP, np.arange(256) * OD_STEP, indexing="ij")
    density = h[..., None] * np.array(HAEMATOXYLIN) + e[..., None] * np.array(EOSIN)
    rgba = np.zeros((256, 256, 4), np.uint8)
    rgba[..., :3] = np.rint(np.array(BACKGROUND) * np.exp(-density))
    return rgba.view(np.uint32).ravel()


def _camera(section: Section, rgb: np.ndarray, y0: int, x0: int) -> np.ndarray:
    """Add the camera's faint noise."""
    y, x = (
        hashed(np.array([y0]), np.array([x0]), section.salt("camera"))[0] >> np.uint64(b) & np.uint64(255)
        for b in (8, 16)
    )
    speckle = textures(section.mpp, section.seed)[2][int(y) : int(y) + PATCH, int(x) : int(x) + PATCH]
    return cv2.add(rgb, speckle, dtype=cv2.CV_8U)


def _core(patch: Patch, array: np.ndarray) -> np.ndarray:
    m = patch.section.margin
    return array[m : m + PATCH, m : m + PATCH]
