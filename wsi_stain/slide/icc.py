"""ICC profiles: conversion of a scanner's colours to sRGB."""

from __future__ import annotations

import io
import logging

import numpy as np
from PIL import Image, ImageCms

log = logging.getLogger(__name__)


def srgb_transform(profile: bytes, name: str) -> tuple[ImageCms.ImageCmsTransform, str] | None:
    """The transform from an ICC profile to sRGB and the profile's description; `None` for sRGB and broken profiles."""
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        description = " ".join(ImageCms.getProfileDescription(source).split()) or "unnamed"
        target = ImageCms.createProfile("sRGB")
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(source))
        transform = ImageCms.buildTransform(source, target, "RGB", "RGB", intent)
    except (ImageCms.PyCMSError, OSError, ValueError) as err:
        log.warning("%s: the ICC profile cannot be used (%s); colours are treated as sRGB", name, err)
        return None
    # Many scanners embed sRGB: no transform keeps the pixels bit-exact.
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(18, -1, 3)
    change = np.abs(apply_colour(colours, transform).astype(int) - colours).max()
    return None if change <= 1 else (transform, description)


def apply_colour(pixels: np.ndarray, transform: ImageCms.ImageCmsTransform) -> np.ndarray:
    """Apply an ICC transform: uint8 (h, w, 3) to uint8 (h, w, 3)."""
    return np.asarray(transform.apply(Image.fromarray(pixels))).copy()
