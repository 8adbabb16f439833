"""Which crops a training sees: the same window of both stains, by number alone."""

from pathlib import Path

import numpy as np
import pytest
from builders.pairs import blobs, placed_pairs

from wsi_stain.errors import TrainingError
from wsi_stain.pairs.pair import find_pairs
from wsi_stain.train.crops import Crops, jitter_stain, numbers, stream


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return placed_pairs(tmp_path / "pairs")


def crops(pairs: Path, side: int = 96, **settings: object) -> Crops:
    return Crops(tuple(find_pairs(pairs, "train")), side=side, seed=1, **settings)  # type: ignore[arg-type]


def test_both_stains_get_the_same_window_flip_and_turn(pairs: Path) -> None:
    he, ihc = crops(pairs).batch(0, 24)
    np.testing.assert_array_equal(ihc, 255 - he)
    corners = {tuple(image[0, 0, :2]) for image in he}
    assert len(corners) > 12, "crops must differ in place and orientation"


def test_without_turns_crops_are_only_flipped(pairs: Path) -> None:
    he, _ = crops(pairs, turns=False).batch(0, 24)
    rows = he[..., 0].astype(int)
    assert (np.diff(rows, axis=1) == 1).all(), "y must grow downwards in every crop"
    directions = {int(step) for step in np.diff(he[:, 0, :2, 1].astype(int)).ravel()}
    assert directions == {-1, 1}, "some crops are mirrored, some are not"


def test_every_epoch_sees_every_pair_once_and_in_another_order(pairs: Path) -> None:
    stream_of_tiles = crops(pairs, side=160)
    seen = [int(stream_of_tiles[i][0][0, 0, 2]) // 10 for i in range(30)]
    epochs = [seen[i : i + 3] for i in range(0, 30, 3)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_crop_depends_on_its_number_alone(pairs: Path) -> None:
    jittered = crops(pairs, stain_jitter=0.3)
    np.testing.assert_array_equal(jittered.batch(0, 8)[0][5], jittered.batch(5, 1)[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_bring_the_same_crops_in_the_same_order(pairs: Path, workers: int) -> None:
    wanted = crops(pairs)
    batches = list(stream(wanted, numbers(4, 13, 3), workers))
    assert len(batches) == 3
    for i, (he, ihc) in enumerate(batches):
        for actual, expected in zip((he, ihc), wanted.batch(4 + 3 * i, 3), strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_processes_share_every_batch_without_overlap() -> None:
    whole = list(numbers(8, 20, 4))
    parts = [list(numbers(8, 20, 4, rank=rank, world=2)) for rank in range(2)]
    assert [[*a, *b] for a, b in zip(*parts, strict=True)] == [list(batch) for batch in whole]


def test_a_tile_smaller_than_the_crop_is_named(pairs: Path) -> None:
    with pytest.raises(TrainingError, match=r"he\d.png is 160x160 px: smaller than the crop of 192 px"):
        crops(pairs, side=192)[0]


def test_stain_jitter_moves_colours_within_its_strength_and_leaves_structure() -> None:
    (tile,) = blobs(1, 64)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(jitter_stain(tile, 0.0, rng), tile)
    jittered = [jitter_stain(tile, 0.2, rng) for _ in range(20)]
    densities = [-np.log10(np.maximum(x, 1) / 255).sum() for x in (tile, *jittered)]
    assert np.std(densities[1:]) > 0.02 * densities[0], "the amount of stain must vary"
    for image in jittered:
        assert np.corrcoef(image[..., 1].ravel(), tile[..., 1].ravel())[0, 1] > 0.98
