"""Fluorescence channels as one picture in colours, for viewers and pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsi_stain.config.channels import Channel


def composite(pixels: np.ndarray, channels: Sequence[Channel]) -> np.ndarray:
    """Each channel in its colour; where several shine, the brightest value of each primary colour.

    A sum, as microscopes make it, would turn white where many channels of a panel are above zero.

    Args:
        pixels: uint8 (h, w, C).
        channels: C of them.

    Returns:
        uint8 (h, w, 3), sRGB
    """
    shown = np.zeros((*pixels.shape[:2], 3), np.uint8)
    for index, channel in enumerate(channels):
        values = pixels[..., index].astype(np.uint16)
        for primary, strength in enumerate(channel.colour):
            if strength:
                np.maximum(
                    shown[..., primary], (values * strength + 127) // 255, out=shown[..., primary], casting="unsafe"
                )
    return shown
