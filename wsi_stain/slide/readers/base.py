"""The protocol of all readers, and their shared parts: per-thread handles and a bounded cache of decoded tiles."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from wsi_stain.geometry import Box, Size

CACHE_BYTES = 64 << 20
"""Decoded tiles kept per slide: several times the tile rows along the border of a 2048 px block."""


class UnsupportedFormat(Exception):  # noqa: N818 - not a failure: another reader may support the file
    """This reader cannot read the file; the text is a predicate whose subject is the file name."""


class DecodeError(Exception):
    """A region cannot be decoded."""


@dataclass(frozen=True, slots=True)
class SlideMetadata:
    """Metadata of a file: technical facts only, nothing about the patient."""

    vendor: str
    format: str
    mpp: tuple[float, float] | None
    """µm per px along (x, y), as stored, not validated."""
    mpp_from: str
    """The properties that hold the µm/px, or would hold it if it is missing; empty if the format has none."""
    magnification: float | None = None
    codec: str = ""
    bounds: Box | None = None
    """The scanned part of level 0 (`openslide.bounds-*`)."""
    icc: bytes | None = None
    absent: float = 0.0
    """Share of level 0 for which the file holds no data (tiles of zero bytes)."""
    orientation: int = 1
    """How the stored picture must be turned to be upright: the number of TIFF's and EXIF's tag 274."""
    offset: tuple[int, int] | None = None
    """(x, y) of the first pixel in the file's own level 0, if the reader leaves out the rest of the glass."""
    image: int | None = None
    """Number of the image that is read, if the file holds several of slide scale."""
    plane: int | None = None
    """Number of the focal plane (or time) that is read, if there are several."""
    notes: tuple[str, ...] = ()
    """Choices that the reader made and the user should know, each a sentence."""


class Backend(Protocol):
    """A reader of one file: pixels of whole levels, before any cropping."""

    name: str
    sizes: tuple[Size, ...]
    metadata: SlideMetadata

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the level; raises `DecodeError`."""
        ...

    def renew(self) -> None:
        """Give the calling thread a fresh handle: some handles stay broken after an error."""
        ...

    def close(self) -> None:
        """Close the handles of all threads."""
        ...


class Closable(Protocol):
    """Anything that can be closed."""

    def close(self) -> None:
        """Close it."""
        ...


H = TypeVar("H", bound=Closable)


class PerThread(Generic[H]):
    """One handle per thread, created on first use, all closed together."""

    def __init__(self, make: Callable[[], H]) -> None:
        self._make = make
        self._local = threading.local()
        self._lock = threading.Lock()
        self._handles: weakref.WeakSet[H] = weakref.WeakSet()
        self._closed = False

    def get(self) -> H:
        """The calling thread's handle."""
        handle = getattr(self._local, "handle", None)
        if handle is None:
            handle = self._make()
            with self._lock:
                if self._closed:
                    handle.close()
                    raise DecodeError("the slide is closed")
                self._handles.add(handle)
            self._local.handle = handle
        return handle

    def renew(self) -> None:
        """Drop the calling thread's handle; the next `get` creates a new one."""
        handle = getattr(self._local, "handle", None)
        self._local.handle = None
        if handle is not None:
            with self._lock:
                self._handles.discard(handle)
            handle.close()

    def close(self) -> None:
        """Close the handles of all threads permanently."""
        with self._lock:
            self._closed = True
            handles, self._handles = list(self._handles), weakref.WeakSet()
        self._local = threading.local()
        for handle in handles:
            handle.close()


class DecodedTileCache:
    """LRU cache of decoded tiles, at most `limit` bytes; shared by threads."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.nbytes = 0
        self._tiles: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The tile of `key`, decoded if it is not cached; callers must not modify it."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        tile = decode()
        with self._lock:
            if key not in self._tiles and tile.nbytes <= self.limit:
                self._tiles[key] = tile
                self.nbytes += tile.nbytes
            while self.nbytes > self.limit:
                self.nbytes -= self._tiles.popitem(last=False)[1].nbytes
        return tile

    def clear(self) -> None:
        """Drop all tiles."""
        with self._lock:
            self._tiles.clear()
            self.nbytes = 0


def over_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 4) with straight alpha, composited over white: uint8 (h, w, 3)."""
    if rgba[..., 3].min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
