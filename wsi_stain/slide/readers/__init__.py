"""The readers used by `Slide`: one protocol (`base`), one module per library, and the selection (`choose`)."""

from wsi_stain.slide.readers.base import Backend, Facts, Undecodable
from wsi_stain.slide.readers.choose import open_backend

__all__ = ["Backend", "Facts", "Undecodable", "open_backend"]
