"""Reader of napari: a slide opens as two multiscale layers with physical scale, the H&E and its virtual stain.

The stain is computed where one looks at its finest level. Coarser levels show what is painted over a pale H&E, so that
the first look, at the whole slide, stains nothing.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_stain.errors import WsiStainError
from wsi_stain.files.notice import RESEARCH_USE
from wsi_stain.geometry import Box
from wsi_stain.slide.slide import Level, Slide, View
from wsi_stain.view.virtual import VirtualSlide, virtual_slide

if TYPE_CHECKING:
    from dask.array import Array

CHUNK = 512
"""Side of the chunks of the H&E and of coarse levels in px."""

LayerData = tuple[list[Any], dict[str, Any], str]
"""Arrays (finest first), attributes, and kind of a layer."""

log = logging.getLogger(__name__)


def reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """See napari: the function that reads a path, or None for several paths or a file that is not a slide."""
    if not isinstance(path, str):
        return None
    try:
        Slide.open(Path(path)).close()
    except WsiStainError as err:
        log.info("%s is not opened as a slide: %s", path, err)
        return None
    return read


def read(path: str | Sequence[str]) -> list[LayerData]:
    """The layers of a slide: the H&E, and its virtual stain by the default model if the slide can be stained.

    A slide that is a virtual stain itself, or is refused for another reason, gets one layer; a warning states why.
    """
    file = Path(path if isinstance(path, str) else path[0])
    slide = Slide.open(file)
    atexit.register(slide.close)
    layers = [_layer(_of_slide(slide), file.name, slide.mpp_or_none)]
    try:
        virtual = virtual_slide(file)
    except WsiStainError as err:
        log.warning("%s is shown without a virtual stain: %s", file.name, err)
        return layers
    atexit.register(_close, virtual)
    stain = f"virtual {virtual.stain}, {RESEARCH_USE.lower()}"
    return [*layers, _layer(_of_virtual(virtual), stain, virtual.mpp)]


def _close(virtual: VirtualSlide) -> None:
    """Give the lock of the output back; its folder may be gone when the program ends."""
    with suppress(OSError):
        virtual.close()


@dataclass(frozen=True, eq=False)
class _LevelArray:
    """One level as an object that Dask slices: uint8 (h, w, 3)."""

    level: Level
    read: Callable[[Box], np.ndarray]
    dtype = np.dtype(np.uint8)
    ndim = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.level.size.h, self.level.size.w, 3

    def __getitem__(self, index: Sequence[slice]) -> np.ndarray:
        (y0, y1), (x0, x1), (c0, c1) = (s.indices(n)[:2] for s, n in zip(index, self.shape, strict=True))
        return self.read(Box(y0, x0, y1, x1))[..., c0:c1]

    def as_dask(self) -> Array:
        import dask.array as da

        chunks: Any = (CHUNK, CHUNK, 3)
        empty = np.empty((0, 0, 0), np.uint8)  # otherwise Dask reads a part to learn the type
        return da.from_array(self, chunks=chunks, name=False, asarray=False, fancy=False, meta=empty)


def _of_slide(slide: Slide) -> list[Array]:
    views = [View(slide, level.size, None, level.downsample) for level in slide.levels]
    return [_LevelArray(level, view.read).as_dask() for level, view in zip(slide.levels, views, strict=True)]


def _of_virtual(virtual: VirtualSlide) -> list[Array]:
    coarse = [
        _LevelArray(level, lambda box, n=n: virtual.preview(n, box)).as_dask()
        for n, level in enumerate(virtual.levels)
        if n > 0
    ]
    return [virtual.dask()[0], *coarse]


def _layer(arrays: list[Array], name: str, mpp: float | None) -> LayerData:
    """Both layers begin at the upper left corner of the slide, whatever the size of their pixels."""
    attributes: dict[str, Any] = {"name": name, "rgb": True, "multiscale": True, "cache": False}
    if mpp is not None:
        attributes |= {"scale": (mpp, mpp), "translate": (mpp / 2, mpp / 2), "units": ("um", "um")}
    return arrays, attributes, "image"
