"""The outline of stained tiles: found where glass is tinted by one grey level, silent where it is background."""

import numpy as np
import pytest

from wsi_stain.conversion import outline
from wsi_stain.conversion.certificate import judge
from wsi_stain.geometry import Box, Size
from wsi_stain.output.encoding import Encoding
from wsi_stain.tiling.grid import TileGrid

GRID = TileGrid(Size(2048, 2048), 512, 32)
TISSUE = Box(440, 440, 540, 540)
BACKGROUND = 247


def touches(box: Box) -> bool:
    return bool((box & TISSUE).area)


def stained_tiles() -> list[Box]:
    return [tile for tile in GRID.tiles(Box.of(GRID.size)) if touches(tile)]


def painted(tint: float, quality: int | None = 90) -> np.ndarray:
    """Tissue in stained tiles whose glass differs by `tint` from the background, stored like an output."""
    image = np.full((*GRID.size, 3), BACKGROUND, float)
    for tile in stained_tiles():
        image[tile.slices()] = BACKGROUND + tint
    image[TISSUE.slices()] = np.random.default_rng(0).integers(100, 200, (*TISSUE.size, 3))
    pixels = image.astype(np.uint8)
    if quality is None:
        return pixels
    encoding = Encoding(quality=quality)
    for y in range(0, GRID.size.h, 512):
        for x in range(0, GRID.size.w, 512):
            at = (slice(y, y + 512), slice(x, x + 512))
            pixels[at] = encoding.decode(encoding.encode(np.ascontiguousarray(pixels[at])))
    return pixels


def difference(image: np.ndarray, seed: int = 0) -> float:
    patches = outline.choose(GRID, stained_tiles(), touches, seed)
    return outline.difference(*([image[box.slices()] for box in kind] for kind in patches))


@pytest.mark.parametrize("quality", [None, 90])
@pytest.mark.parametrize("tint", [0.0, 1.0, -2.0])
def test_the_tint_of_glass_is_measured_whatever_the_encoding(tint: float, quality: int | None):
    assert difference(painted(tint, quality)) == pytest.approx(abs(tint), abs=0.15)


def test_patches_are_glass_on_their_own_side():
    patches = outline.choose(GRID, stained_tiles(), touches, 3)
    for kind, is_stained in zip(patches, (True, False), strict=True):
        assert len(kind) >= outline.FEWEST_PATCHES
        for patch in kind:
            covering = list(GRID.tiles(patch))
            assert all((tile in stained_tiles()) == is_stained for tile in covering)
            assert not touches(Box(patch.y0 - 64, patch.x0 - 64, patch.y1 + 64, patch.x1 + 64))


def test_dust_on_the_glass_is_no_outline():
    image = painted(0.0)
    patches = outline.choose(GRID, stained_tiles(), touches, 0)
    for box in patches.stained[: len(patches.stained) // 3]:
        image[box.slices()] = 180
    assert difference(image) < 0.15


@pytest.mark.parametrize("tissue", ["none", "all"])
def test_the_question_is_not_asked_where_there_is_one_side_only(tissue: str):
    tiles = list(GRID.tiles(Box.of(GRID.size))) if tissue == "all" else []
    assert outline.choose(GRID, tiles, lambda box: tissue == "all", 0) == outline.OutlinePatches()


def test_the_certificate_fails_above_the_limit_and_says_why():
    verdicts = [judge([], [], tolerance=None, stride=480, outline=value) for value in (0.0, 0.3, 0.31, None)]
    assert [v.verdict for v in verdicts] == ["pass", "pass", "fail", "not applicable"]
    assert verdicts[2].reasons == ("stained tiles have a visible outline on the background",)
