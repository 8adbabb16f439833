"""What every reader offers, and what they share: handles per thread and a bounded cache of decoded tiles."""

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
"""Decoded tiles kept per slide: the tile rows along the border of a 2048 px block, several times over."""


class Unsuited(Exception):  # noqa: N818 - an answer, not a failure: another reader may do
    """This reader cannot read the file; the text goes on after the file's name."""


class Undecodable(Exception):  # noqa: N818 - as `UnreadableRegion`, which it becomes
    """A region cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file says about itself: technical facts only, nothing about the patient."""

    vendor: str
    format: str
    mpp: tuple[float, float] | None
    """µm per px along (x, y), as written, however absurd."""
    mpp_from: str
    """The properties that hold the µm/px, or that were looked for in vain; empty where the format has none."""
    magnification: float | None = None
    codec: str = ""
    bounds: Box | None = None
    """The scanned part of level 0 (`openslide.bounds-*`)."""
    icc: bytes | None = None
    has_gaps: bool = False
    """Whether tiles are missing on purpose (zero bytes long)."""


class Backend(Protocol):
    """A reader of one file: pixels of whole levels, before any cropping."""

    name: str
    sizes: tuple[Size, ...]
    facts: Facts

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the level; `Undecodable`."""
        ...

    def renew(self) -> None:
        """Give the calling thread a fresh handle: some stay broken after the first error."""
        ...

    def close(self) -> None:
        """Close the handles of all threads."""
        ...


class Closable(Protocol):
    """Anything that is closed."""

    def close(self) -> None:
        """Close it."""
        ...


H = TypeVar("H", bound=Closable)


class PerThread(Generic[H]):
    """One handle for each thread, made when first needed, all closed together."""

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
                    raise Undecodable("the slide is closed")
                self._handles.add(handle)
            self._local.handle = handle
        return handle

    def renew(self) -> None:
        """Drop the calling thread's handle; the next `get` makes another."""
        handle = getattr(self._local, "handle", None)
        self._local.handle = None
        if handle is not None:
            with self._lock:
                self._handles.discard(handle)
            handle.close()

    def close(self) -> None:
        """Close the handles of all threads, for good."""
        with self._lock:
            self._closed = True
            handles, self._handles = list(self._handles), weakref.WeakSet()
        self._local = threading.local()
        for handle in handles:
            handle.close()


class TileCache:
    """The decoded tiles used last, at most `limit` bytes of them; shared by threads."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.nbytes = 0
        self._tiles: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The tile of `key`, decoded where it is not here; it must not be written to."""
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
        """Forget all tiles."""
        with self._lock:
            self._tiles.clear()
            self.nbytes = 0


def number(text: object) -> float | None:
    """A property's text as a finite number; `None` where it is none."""
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def over_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 4) with straight alpha, laid over white glass: uint8 (h, w, 3)."""
    if rgba[..., 3].min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
