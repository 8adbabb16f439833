"""The encoding of DICOM frames: the JPEG of an OME-TIFF, or JPEG 2000 without loss, which DICOM readers know."""

from __future__ import annotations

import imagecodecs
import numpy as np
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

from wsi_stain.output.encoding import Encoding


class DicomEncoding(Encoding):
    """Like `Encoding`, but lossless tiles are JPEG 2000: DICOM has no predictor, and OpenSlide reads no Deflate in it.

    encoding = DicomEncoding.of(OutputConfig(compression="deflate"))
    encoding.decode(encoding.encode(tile)) == tile
    """

    __slots__ = ()

    def encode(self, tile: np.ndarray) -> bytes:
        """See `Encoding.encode`."""
        if self.compression != "deflate":
            return Encoding.encode(self, tile)
        stream = imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(tile), codecformat="j2k", colorspace="SRGB", reversible=True, mct=True
        )
        return bytes(stream)

    def decode(self, data: bytes) -> np.ndarray:
        """See `Encoding.decode`."""
        return imagecodecs.jpeg2k_decode(data) if self.compression == "deflate" else Encoding.decode(self, data)

    @property
    def is_lossless(self) -> bool:
        """Whether decoding gives the pixels back."""
        return self.compression == "deflate"

    @property
    def syntax(self) -> str:
        """UID of the transfer syntax (PS3.5, A.4.1 and A.4.4)."""
        return JPEG2000Lossless if self.is_lossless else JPEGBaseline8Bit

    @property
    def photometric(self) -> str:
        """Photometric interpretation; YBR_FULL_422 stands for 4:2:0, too (PS3.5, 8.2.1)."""
        if self.is_lossless:
            return "YBR_RCT"
        return "RGB" if self.subsampling == "rgb" else "YBR_FULL_422"
