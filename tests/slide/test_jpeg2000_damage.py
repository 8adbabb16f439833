"""Damage inside JPEG 2000 streams that the decoder shows as a picture."""

from __future__ import annotations

import io
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
from builders.slides import tissue
from PIL import Image

from wsi_stain.slide.readers.jpeg2000_damage import check_jpeg2000


def busy(side: int) -> np.ndarray:
    """Detail everywhere: uint8 (side, side, 3)."""
    noise = np.random.default_rng(0).integers(-30, 30, (side, side, 3))
    return np.clip(tissue(side, side) + noise, 0, 255).astype(np.uint8)


def encoder(**options: object) -> Callable[[np.ndarray], bytes]:
    def encode(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG2000", no_jp2=True, **options)
        return file.getvalue()

    return encode


ENCODERS = {
    "lossless": encoder(),
    "lossy": encoder(irreversible=True, quality_mode="rates", quality_layers=[8]),
    "layers": encoder(irreversible=True, quality_mode="rates", quality_layers=[80, 40, 20, 10, 5, 2]),
    "precincts": encoder(precinct_size=(128, 128), codeblock_size=(32, 32), progression="RPCL"),
    "tiles": encoder(tile_size=(96, 160), progression="CPRL"),
    "JP2": lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=80, codecformat="jp2"),
    "colours apart": lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0, mct=False, reversible=True),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_lost_parts_that_a_decoder_shows_as_a_picture_are_damage(kind: str) -> None:
    stream = ENCODERS[kind](busy(512))
    places = np.linspace(1500, len(stream) - 5000, 15).astype(int)
    shown = []
    for how, lost in {"zeros": bytes(4096), "ones": b"\xff" * 512, "a marker": b"\xff\xc5"}.items():
        for at in places:
            damaged = stream[:at] + lost + stream[at + len(lost) :]
            try:
                check_jpeg2000(damaged)
                imagecodecs.jpeg2k_decode(damaged)
            except RuntimeError:
                continue
            shown.append((how, at))
    assert shown == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("grey", [None, 0, 128, 243, 255])
def test_whole_streams_are_whole_also_blank_ones(kind: str, grey: int | None) -> None:
    for side in (33, 512):
        pixels = busy(side)
        if grey is not None:
            pixels[: side - 9] = grey
        for whole in (pixels, pixels[: side - 9]):
            stream = ENCODERS[kind](np.ascontiguousarray(whole))
            check_jpeg2000(stream)
            check_jpeg2000(stream + bytes(600))


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("side", [256, 512])
def test_a_tile_that_is_filled_with_its_own_edges_is_whole(kind: str, side: int) -> None:
    """Stripes, which the filling gives, have long runs of zeros."""
    wave = (128 + 90 * np.sin(np.arange(200) * 2 * np.pi / 16)).astype(np.uint8)
    colours = np.stack([np.tile(wave, (200, 1)), np.tile(wave[:, None], (1, 200)), np.tile(wave, (200, 1))], 2)
    for size in (64, 79, 200):
        filled = np.pad(colours[:size, :size], ((0, side - size), (0, side - size), (0, 0)), "edge")
        check_jpeg2000(ENCODERS[kind](filled))


def test_a_lost_sector_of_a_scanner_s_tile_is_found() -> None:
    stream = ENCODERS["lossy"](busy(256))
    for at in range(len(stream) // 4, len(stream) - 600, 300):
        with pytest.raises(RuntimeError, match="zero"):
            check_jpeg2000(stream[:at] + bytes(512) + stream[at + 512 :])


def test_what_is_no_stream_is_left_to_the_decoder() -> None:
    for data in (b"", bytes(100), b"\xff\x4f\xff\x51", ENCODERS["lossy"](busy(64))[:60]):
        check_jpeg2000(data)
