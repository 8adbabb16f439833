"""Reads the levels of a file, with one retry; whatever a codec raises becomes one of our errors."""

from __future__ import annotations

import logging

import numpy as np

from wsi_stain.errors import SlideError, UnreadableRegion, WsiStainError
from wsi_stain.geometry import Box
from wsi_stain.slide.readers import Backend, DecodeError

log = logging.getLogger(__name__)


class LevelReader:
    """The levels of a file as its backend reads them; thread-safe.

    Args:
        backend: of the open file; closed with this reader.
        name: of the file, for messages.
    """

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend, self._name = backend, name
        self._is_closed = False

    def read(self, level: int, box: Box) -> np.ndarray:
        """Pixels of a box of one level, uint8 (h, w, 3); a failed read is retried once on a fresh handle.

        Raises:
            UnreadableRegion: the box cannot be decoded.
            SlideError: the reader is closed, or there is not enough memory.
        """
        self._check_open()
        try:
            return self._decode(level, box)
        except DecodeError as err:
            log.info("%s: cannot decode %s of level %d (%s); retrying once", self._name, box, level, err)
        self._check_open()  # closed by another thread: the file is not damaged
        self._backend.renew()
        try:
            return self._decode(level, box)
        except DecodeError as err:
            self._check_open()
            raise UnreadableRegion(
                f"{self._name}: x {box.x0}–{box.x1}, y {box.y0}–{box.y1} of level {level} cannot be decoded "
                f"({err}); this part of the file is damaged, the rest can be read",
                box,
                level,
            ) from err

    def close(self) -> None:
        """Close the file; later reads raise `SlideError`."""
        self._is_closed = True
        self._backend.close()

    def _decode(self, level: int, box: Box) -> np.ndarray:
        """Pixels of the file; whatever a codec or a parser raises becomes `DecodeError`."""
        try:
            return self._backend.read(level, box)
        except (DecodeError, WsiStainError, AssertionError):  # an assertion is our own mistake, not damage
            raise
        except MemoryError as err:
            raise SlideError(f"{self._name}: not enough memory to decode {box.size.w} × {box.size.h} px") from err
        except Exception as err:
            raise DecodeError(f"{type(err).__name__}: {err}") from err

    def _check_open(self) -> None:
        if self._is_closed:
            raise SlideError(f"{self._name} is closed; open it again")
