from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
from builders.pyramids import paint

from wsi_stain.config.convert import OutputConfig
from wsi_stain.geometry import Size
from wsi_stain.output.encoding import Encoding, pad_tile
from wsi_stain.output.ometiff.jpeg import read_header

JPEGS = [Encoding(), Encoding(subsampling="422"), Encoding(subsampling="rgb")]
DEFLATE = Encoding("deflate")
TILE = paint(Size(512, 512))


def decoded(encoding: Encoding, stream: bytes) -> np.ndarray:
    """What a reader that trusts the tags alone makes of the stream."""
    if encoding.compression == "jpeg":
        return imagecodecs.jpeg8_decode(stream, outcolorspace="RGB")
    differences = np.frombuffer(imagecodecs.zlib_decode(stream), np.uint8).reshape(512, 512, 3)
    return np.cumsum(differences, axis=1, dtype=np.uint8)


@pytest.mark.parametrize("encoding", [*JPEGS, DEFLATE], ids=str)
def test_a_decoded_tile_looks_like_the_one_encoded(encoding):
    error = np.abs(decoded(encoding, encoding.encode(TILE)).astype(int) - TILE).mean(axis=(0, 1))
    assert error.max() <= (0 if encoding is DEFLATE else 4), error


@pytest.mark.parametrize("encoding", JPEGS, ids=lambda e: e.subsampling)
def test_the_markers_of_a_jpeg_say_what_the_tags_say(encoding):
    header, options = read_header(encoding.encode(TILE)), encoding.tifffile_options()
    assert header.size == (512, 512)
    assert header.bits == 8
    assert header.colours == options["compressionargs"]["outcolorspace"].lower()
    assert header.chroma == options["subsampling"]


def test_ycbcr_is_never_stored_at_full_resolution():
    for encoding in JPEGS:
        header = read_header(encoding.encode(TILE))
        assert header.colours == "rgb" or header.chroma != (1, 1), encoding


@pytest.mark.parametrize("encoding", [*JPEGS, DEFLATE], ids=str)
def test_equal_pixels_give_equal_bytes_in_any_thread_and_memory_layout(encoding):
    strided = np.zeros((512, 1024, 3), np.uint8)[:, ::2]
    strided[:] = TILE
    with ThreadPoolExecutor(4) as threads:
        streams = set(threads.map(encoding.encode, [TILE, strided, TILE.copy(), np.asfortranarray(TILE)] * 2))
    assert len(streams) == 1


def test_better_quality_costs_bytes_and_saves_error():
    poor, good = Encoding(quality=40), Encoding(quality=95)
    streams = poor.encode(TILE), good.encode(TILE)
    errors = [np.abs(decoded(poor, s).astype(int) - TILE).mean() for s in streams]
    assert len(streams[0]) < len(streams[1])
    assert errors[0] > errors[1]


def test_deflate_keeps_noise_exactly():
    noise = np.random.default_rng(1).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    assert np.array_equal(decoded(DEFLATE, DEFLATE.encode(noise)), noise)


def test_the_configuration_chooses_the_encoding():
    config = OutputConfig(compression="deflate", quality=77, subsampling="422")
    assert Encoding.of(config) == Encoding("deflate", 77, "422")
    assert Encoding.of(OutputConfig()) == Encoding()


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 512), (512, 7), (100, 333), (512, 512)])
def test_padding_repeats_the_last_pixels(h, w):
    padded = pad_tile(TILE[:h, :w])
    rows, columns = np.minimum(np.arange(512), h - 1), np.minimum(np.arange(512), w - 1)
    assert np.array_equal(padded, TILE[rows[:, None], columns])


def test_padding_refuses_what_is_larger_than_a_tile():
    with pytest.raises(AssertionError, match="600×512"):
        pad_tile(np.zeros((600, 512, 3), np.uint8))


@pytest.mark.parametrize("tile", [TILE[:500], TILE.astype(np.float32), TILE[..., :1]])
def test_only_whole_uint8_tiles_are_encoded(tile):
    with pytest.raises(AssertionError, match="a tile of"):
        Encoding().encode(tile)


def test_a_jpeg_header_that_is_no_header_is_a_value_error():
    stream = Encoding().encode(TILE)
    for broken in (b"", b"\x89PNG", stream[:100], stream[:2] + stream[200:]):
        with pytest.raises(ValueError, match="JPEG"):
            read_header(broken)
