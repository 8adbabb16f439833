"""The readers used by `Slide`: one protocol (`base`), one module per library, and the selection (`choose`)."""

from wsi_stain.slide.readers.base import Backend, DecodeError, SlideMetadata
from wsi_stain.slide.readers.choose import open_backend

__all__ = ["Backend", "DecodeError", "SlideMetadata", "open_backend"]
