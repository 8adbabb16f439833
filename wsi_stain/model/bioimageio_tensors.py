"""The test tensors of a model folder of BioImage.IO: an image, and what its network must make of it.

They are images before the preprocessing and after the postprocessing, so they prove that the values, colours and layout
that `rdf.yaml` states are those of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsi_stain.errors import BundleError
from wsi_stain.model.bioimageio_values import data_range
from wsi_stain.model.bundle import TileGenerator, sha256_of
from wsi_stain.model.facts import psnr

LEAST_DB = 35.0
"""PSNR that the network must reach on the test tensors; wrong values or colours give 10 to 25 dB."""
MOST_BYTES = 256 << 20
Colours = Literal["rgb", "bgr"]
FindFile = Callable[[Any, str, str], Path]
"""`source`, its key and the ending it must have → a file inside the folder."""


@dataclass(frozen=True, slots=True)
class TestTensors:
    """Test tensors as pixels."""

    __test__ = False  # not a test of pytest

    he: np.ndarray
    """uint8 (1, H, W, 3), in the colours of the network."""
    stain: np.ndarray
    """uint8 (1, H, W, C), likewise."""

    def compare(self, generator: TileGenerator, colours: Colours) -> float:
        """PSNR in dB of what the generator makes of the image, against the test tensor.

        Args:
            generator: takes RGB.
            colours: of the network.

        Raises:
            BundleError: it is below `LEAST_DB`, or the network does not take the image.
        """
        he, stain = (x[..., ::-1] if colours == "bgr" and x.shape[3] == 3 else x for x in (self.he, self.stain))
        output = generator(np.ascontiguousarray(he))
        if stain.shape[3] == 1 and output.shape[3] == 3:  # grey is repeated
            stain = np.repeat(stain, 3, axis=3)
        if output.shape != stain.shape:
            raise BundleError(f"the network makes {output.shape} of the test tensor, but its result has {stain.shape}")
        agreement_db = psnr(output, stain)
        if agreement_db < LEAST_DB:
            raise BundleError(
                f"the network agrees with the folder's test tensors only to {agreement_db:.1f} dB, and {LEAST_DB:g} dB "
                "are required; the values, colours or axes in rdf.yaml, or those passed, are not those of the network"
            )
        return agreement_db


def read_tensors(
    source: Mapping[str, Any], target: Mapping[str, Any], layouts: tuple[list[str], list[str]], find: FindFile
) -> TestTensors | None:
    """The test tensors of the only input and the only output; None if one has no `test_tensor` or states no range.

    Args:
        source: the description of the input.
        target: of the output.
        layouts: names of the axes of both, in order.
        find: gives the file of a `source`.

    Raises:
        ValueError: a file is missing, altered, not an array of numbers, or outside the stated range.
    """
    he, stain = (_pixels(tensor, names, find) for tensor, names in zip((source, target), layouts, strict=True))
    return None if he is None or stain is None else TestTensors(he, stain)


def _pixels(tensor: Mapping[str, Any], axes: list[str], find: FindFile) -> np.ndarray | None:
    limits, entry = data_range(tensor), tensor.get("test_tensor")
    if entry is None or limits is None:
        return None
    if not isinstance(entry, dict):
        raise ValueError("test_tensor must be a mapping of keys to values")
    path = find(entry.get("source"), "test_tensor.source", ".npy")
    if (expected := entry.get("sha256")) is not None and sha256_of(path) != expected:
        raise ValueError(
            f"{path.name} does not match test_tensor.sha256; it was altered or truncated; download it again"
        )
    values = _load(path).transpose([axes.index(name) for name in ("batch", "y", "x", "channel")])
    low, high = limits
    unit = (values.astype(np.float64) - low) / (high - low)
    if not np.isfinite(unit).all() or unit.min() < -0.01 or unit.max() > 1.01:
        raise ValueError(f"{path.name} holds values outside the stated range of {low:g} to {high:g}")
    return np.ascontiguousarray(np.clip(np.rint(255 * unit), 0, 255).astype(np.uint8))


def _load(path: Path) -> np.ndarray:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.name} has more than {MOST_BYTES >> 20} MiB, as no test tensor does")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)  # its header may lie about its size
    except Exception as err:  # its parser raises errors of many kinds
        raise ValueError(f"{path.name} is not an .npy file of numbers ({str(err)[:100]})") from err
    if values.ndim != 4 or values.shape[0] != 1 or values.dtype.kind not in "uif" or not values.size:
        raise ValueError(f"{path.name} is {values.dtype} {values.shape}; it must be one image with four axes")
    return values
