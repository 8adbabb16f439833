"""Paired tiles: every layout is read, what must stop a training is said, and wrong partners are seen."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import rgb_from_hed

from wsi_stain.cli.pairs import command
from wsi_stain.errors import OutputError, TrainingError
from wsi_stain.measure import registration
from wsi_stain.measure.registration import match, structure
from wsi_stain.pairs.check import Check, agreeing, check, problems, separation
from wsi_stain.pairs.leaks import edges
from wsi_stain.pairs.pair import Pair, evenly_spread, find_pairs, load_pair, scan
from wsi_stain.pairs.report import summary, text

SIDE = 160


def noise(seed: int, sigma: float, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation 1."""
    smooth = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma, mode="wrap")
    return (smooth - smooth.mean()) / smooth.std()


def stained(hematoxylin: np.ndarray, other: np.ndarray, stain: int) -> np.ndarray:
    """uint8 (h, w, 3): hematoxylin with eosin (1) or DAB (2); densities in units of optical density."""
    density = np.outer(np.clip(hematoxylin, 0, None), rgb_from_hed[0]) + np.outer(
        np.clip(other, 0, None), rgb_from_hed[stain]
    )
    return np.rint(255 * 10 ** -density.reshape(*hematoxylin.shape, 3)).astype(np.uint8)


def field(seed: int, shape: tuple[int, int] = (SIDE, SIDE)) -> tuple[np.ndarray, np.ndarray]:
    """H&E and IHC of one field: nests in common, cells and the other stain not."""
    nests = noise(seed, 5, shape)
    he = stained(0.4 + 0.15 * nests + 0.1 * noise(seed + 1000, 1, shape), 0.2 + 0.1 * noise(seed + 2000, 4, shape), 1)
    ihc = stained(0.2 + 0.08 * nests + 0.05 * noise(seed + 3000, 1, shape), 0.1 * noise(seed + 4000, 6, shape), 2)
    return he, ihc


def save(image: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def make_set(folder: Path, n: int = 12, split: str = "train", first: int = 0) -> list[Pair]:
    """True pairs of unknown slides."""
    images = [field(first + i) for i in range(n)]
    return [
        Pair(save(he, folder / f"{split}A/{i}.png"), save(ihc, folder / f"{split}B/{i}.png"), "", split)
        for i, (he, ihc) in enumerate(images)
    ]


def turned(pairs: Sequence[Pair], step: int = 1) -> list[Pair]:
    """The same tiles with each other's partners."""
    return [replace(p, ihc=pairs[(i + step) % len(pairs)].ihc) for i, p in enumerate(pairs)]


@pytest.fixture(scope="module")
def true_pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return make_set(tmp_path_factory.mktemp("true"), n=24)


def plain(value: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def write_table(folder: Path, *rows: str, header: str = "he,ihc,slide_id,split") -> Path:
    (folder / "pairs.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return folder


# Layouts


@pytest.mark.parametrize(
    ("he", "ihc", "split"),
    [
        ("HE/train", "IHC/train", "train"),
        ("HE/test", "IHC/test", "test"),
        ("trainA", "trainB", "train"),
        ("valA", "valB", "val"),
        ("he", "ihc", ""),
        ("HE", "IHC", ""),
    ],
)
@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_folders_of_public_sets_are_read(tmp_path: Path, he: str, ihc: str, split: str, ending: str) -> None:
    save(plain(10), tmp_path / he / f"s1_2.{ending}")
    save(plain(20), tmp_path / ihc / f"s1_2.{ending}")
    (pair,) = find_pairs(tmp_path)
    assert (pair.split, pair.slide_id, pair.x) == (split, "", None), "a slide is never guessed from a name"
    assert [int(image[0, 0, 0]) for image in load_pair(pair)] == [10, 20]


def test_side_by_side_images_have_the_he_on_the_left_unless_the_table_says_right(tmp_path: Path) -> None:
    both = np.hstack([plain(10, (6, 4)), plain(20, (6, 4))])
    save(both, tmp_path / "val/a.png")
    (pair,) = find_pairs(tmp_path, "val")
    assert [(image.shape, int(image[0, 0, 0])) for image in load_pair(pair)] == [((6, 4, 3), 10), ((6, 4, 3), 20)]
    write_table(tmp_path, "val/a.png,val/a.png,s,test,right", header="he,ihc,slide_id,split,he_side")
    (pair,) = find_pairs(tmp_path)
    assert [int(image[0, 0, 0]) for image in load_pair(pair)] == [20, 10]
    write_table(tmp_path, "val/a.png,val/a.png,s,test")
    assert find_pairs(tmp_path)[0].he_side == "left"


def test_a_table_says_slide_split_and_place(tmp_path: Path) -> None:
    save(plain(1), tmp_path / "a.png")
    save(plain(2), tmp_path / "b.png")
    write_table(tmp_path, "a.png,b.png, s 1 ,test,512,,1024", header="\ufeffhe,ihc,slide_id,split,x,y,side")
    assert find_pairs(tmp_path) == [Pair(tmp_path / "a.png", tmp_path / "b.png", "s 1", "test", 512, None, 1024)]
    assert find_pairs(tmp_path / "pairs.csv") == find_pairs(tmp_path)


def test_splits_never_mix_and_pairs_are_sorted(tmp_path: Path) -> None:
    for split, names in {"train": "cab", "val": "ed"}.items():
        for name in names:
            save(plain(1), tmp_path / f"{split}A/{name}.png")
            save(plain(1), tmp_path / f"{split}B/{name}.png")
    assert [p.he.stem for p in find_pairs(tmp_path, "train")] == ["a", "b", "c"]
    assert [p.he.stem for p in find_pairs(tmp_path, "val")] == ["d", "e"]
    assert len(find_pairs(tmp_path)) == 5


def test_the_stem_makes_the_pair_and_other_files_are_passed_over(tmp_path: Path) -> None:
    save(plain(1), tmp_path / "trainA/a.png")
    save(plain(2), tmp_path / "trainB/a.tif")
    (tmp_path / "trainA/._a.png").write_bytes(b"resource fork")
    (tmp_path / "trainA/notes.txt").write_text("x")
    assert [p.ihc.name for p in find_pairs(tmp_path)] == ["a.tif"]


def test_grey_and_transparent_images_become_colour(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(tmp_path / "b.png")
    (pair,) = find_pairs(write_table(tmp_path, "a.png,b.png,s,train"))
    assert [image[0, 0].tolist() for image in load_pair(pair)] == [[7, 7, 7], [1, 2, 3]]


# What is wrong with a set


def test_files_without_partners_are_all_named_and_stop_a_training(tmp_path: Path) -> None:
    for name in ("A/a", "A/b", "B/b", "B/c"):
        save(plain(1), tmp_path / f"train{name}.png")
    pairs, unpaired = scan(tmp_path)
    assert [p.he.stem for p in pairs] == ["b"]
    assert unpaired == [
        f"{tmp_path / 'trainA/a.png'} has no partner: expected {tmp_path / 'trainB/a.png'}",
        f"{tmp_path / 'trainB/c.png'} has no partner: expected {tmp_path / 'trainA/c.png'}",
    ]
    with pytest.raises(TrainingError, match=r"a.png has no partner.* \(and 1 more such files\)"):
        find_pairs(tmp_path)


def test_a_line_without_its_file_is_named(tmp_path: Path) -> None:
    save(plain(1), tmp_path / "a.png")
    write_table(tmp_path, "a.png,a.png,s,train", "a.png,gone.png,s,train")
    with pytest.raises(TrainingError, match=r"pairs.csv, line 3: no such file: .*gone.png"):
        find_pairs(tmp_path)
    assert len(scan(tmp_path)[0]) == 1


@pytest.mark.parametrize(
    ("header", "row", "sentence"),
    [
        ("he,ihc,split", "a.png,a.png,train", "lacks the column 'slide_id'"),
        ("he,ihc,slide_id,split", "a.png,a.png", "line 2 is too short"),
        ("he,ihc,slide_id,split,x", "a.png,a.png,s,train,1.5", "line 2: x is '1.5': it must be a whole number"),
        ("he,ihc,slide_id,split,he_side", "a.png,a.png,s,train,up", "he_side is 'up': it must be left or right"),
        ("he,ihc,slide_id,split,he_side", "a.png,b.png,s,train,left", "and empty if they are two"),
        ("he,ihc,slide_id,split", "", "its table has no rows"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, header: str, row: str, sentence: str) -> None:
    save(plain(1), tmp_path / "a.png")
    save(plain(1), tmp_path / "b.png")
    with pytest.raises(TrainingError, match=sentence):
        find_pairs(write_table(tmp_path, row, header=header))


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes(b"\xff\xfe\x00he")
    with pytest.raises(TrainingError, match=r"pairs\.csv is not UTF-8 .*save it as CSV UTF-8"):
        find_pairs(tmp_path)


def test_nothing_and_an_unknown_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no pairs in"):
        find_pairs(tmp_path / "nothing")
    make_set(tmp_path, n=1)
    with pytest.raises(TrainingError, match=r"no pairs of the split 'test' .* available splits: train"):
        find_pairs(tmp_path, "test")


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    for name in ("A/a.png", "A/a.tif", "B/a.png"):
        save(plain(1), tmp_path / f"train{name}")
    with pytest.raises(TrainingError, match=r"a.png and a.tif have the same stem"):
        find_pairs(tmp_path)


def test_every_unusable_image_is_a_sentence(tmp_path: Path) -> None:
    for name, image in {"good": plain(9, (64, 64)), "low": plain(9, (64, 60)), "odd": plain(9, (64, 127))}.items():
        save(image, tmp_path / f"{name}.png")
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:80])
    (tmp_path / "text.jpg").write_text("no image")
    rows = ["good,good", "good,low", "low,low", "deep,good", "good,broken", "text,good", "odd,odd"]
    table = [
        f"{a}.png,{b}.png,,train,{'left' if a == b else ''}".replace("text.png", "text.jpg")
        for a, b in (row.split(",") for row in rows)
    ]
    write_table(tmp_path, *table, header="he,ihc,slide_id,split,he_side")
    actual = problems(find_pairs(tmp_path), crop=40)
    assert len(actual) == 7
    for part in (
        "good.png is 64 × 64 px but .*low.png is 60 × 64 px: pairs must have equal sizes",
        "deep.png has 16 bits per channel; save it with 8 bits per channel, or remove the pair",
        "broken.png cannot be decoded .*; copy it again, or remove the pair",
        "text.jpg cannot be decoded",
        "odd.png is 127 × 64 px: .* must have an even width",
        "good.png is 32 × 64 px: smaller than the crop of 40 px",
        "low.png is 30 × 64 px: smaller than the crop of 40 px",
    ):
        assert any(re.search(part, sentence) for sentence in actual), part


def test_only_the_first_ten_of_a_kind_are_told(tmp_path: Path) -> None:
    pairs = make_set(tmp_path, n=1) * 13
    actual = problems(pairs, crop=SIDE + 1)
    assert len(actual) == 11
    assert actual[-1] == "and 3 more of the same kind"
    assert problems(pairs, crop=SIDE) == []


# Leaks between splits


def placed(pairs: Sequence[Pair], places: Sequence[tuple[int, int, str]], **more: int) -> list[Pair]:
    return [replace(p, slide_id="s", x=x, y=y, split=s, **more) for p, (x, y, s) in zip(pairs, places, strict=False)]


def test_a_slide_in_two_splits_is_a_leak_unless_a_gap_is_shown(true_pairs: list[Pair]) -> None:
    train, test = replace(true_pairs[0], slide_id="s"), replace(true_pairs[1], slide_id="s", split="test")
    (sentence,) = problems([train, test], crop=0)
    assert "the slide 's' is in the splits test, train and has tiles without coordinates" in sentence
    assert problems([train, replace(test, slide_id="other")], crop=0) == []
    assert problems([replace(train, slide_id=""), replace(test, slide_id="")], crop=0) == []
    assert problems(placed([train, test], [(0, 0, "train"), (SIDE + 1, 0, "test")]), crop=0) == []


@pytest.mark.parametrize("place", [(SIDE, 0), (SIDE, SIDE), (SIDE // 2, -SIDE // 3), (0, 0)])
def test_tiles_of_two_splits_must_not_touch_or_overlap(true_pairs: list[Pair], place: tuple[int, int]) -> None:
    (sentence,) = problems(placed(true_pairs, [(0, 0, "train"), (*place, "test")]), crop=0)
    assert "1 tile of the split test touches or overlaps tiles of train at a side of 160 px" in sentence


def test_the_grid_shows_that_tiles_were_scaled_down_and_the_table_may_say_so(true_pairs: list[Pair]) -> None:
    side = 2 * SIDE
    grid = [(x * side, y * side, "train" if x < 2 else "test") for x in range(4) for y in range(2)]
    (sentence,) = problems(placed(true_pairs, grid), crop=0)
    assert "2 tiles of the split test" in sentence
    assert "at a side of 320 px" in sentence
    assert problems(placed(true_pairs, grid, side=SIDE), crop=0) == []
    two = [(0, 0, "train"), (side, 0, "test")]
    assert problems(placed(true_pairs, two), crop=0) == [], "two tiles are no grid"
    assert len(problems(placed(true_pairs, two, side=side), crop=0)) == 1


def test_the_same_image_in_two_splits_is_a_leak_under_any_name(tmp_path: Path, true_pairs: list[Pair]) -> None:
    copy = save(np.asarray(Image.open(true_pairs[0].he)), tmp_path / "copy.tif")
    twin = replace(true_pairs[1], he=copy, split="val")
    (sentence,) = problems([true_pairs[0], twin], crop=0)
    assert sentence == f"{true_pairs[0].he} (train) and {copy} (val) are the same image: keep it in one split"
    assert problems([true_pairs[0], replace(twin, split="train")], crop=0) == []


def cut(folder: Path, splits: str, slide: str = "") -> list[Pair]:
    """A section in columns of two large tiles; "." leaves a column out."""
    side = 400
    he, ihc = field(77, (2 * side, (len(splits) + 1) * side))  # the noise is periodic: the last column stays unused
    names = {"r": "train", "e": "test"}
    return [
        Pair(
            save(he[y : y + side, x : x + side], folder / f"he{x}_{y}.png"),
            save(ihc[y : y + side, x : x + side], folder / f"ihc{x}_{y}.png"),
            slide,
            names[splits[x // side]],
        )
        for x in range(0, len(splits) * side, side)
        for y in range(0, 2 * side, side)
        if splits[x // side] != "."
    ]


@pytest.mark.slow
def test_neighbours_in_two_splits_are_seen_without_knowing_slides(tmp_path: Path) -> None:
    touching = check(cut(tmp_path / "touching", "rree"))
    (sentence,) = touching.flagged
    assert sentence.startswith("2 tiles of the split test continue in tiles of train, first he800_")
    assert check(cut(tmp_path / "apart", "rr.ee")).flagged == ()
    assert check(cut(tmp_path / "one", "rrrr")).flagged == ()


@pytest.mark.slow
def test_neighbours_are_left_to_the_table_where_it_knows_the_slide(tmp_path: Path) -> None:
    (sentence,) = check(cut(tmp_path, "rree", slide="s")).flagged
    assert "has tiles without coordinates" in sentence


def test_edges_know_brightness_and_background_for_nothing(true_pairs: list[Pair]) -> None:
    he = load_pair(true_pairs[0])[0]
    np.testing.assert_allclose(edges(he // 2 + 100), edges(he), atol=0.15)
    np.testing.assert_array_equal(edges(plain(240, (64, 64))), np.zeros((4, 512)))
    np.testing.assert_allclose(np.linalg.norm(edges(he), axis=1), 1, rtol=1e-5)
    left, right, top, bottom = edges(he)
    turned_left, turned_right, turned_top, turned_bottom = edges(he.transpose(1, 0, 2))
    np.testing.assert_array_equal([left, right, top, bottom], [turned_top, turned_bottom, turned_left, turned_right])


# Registration


@settings(max_examples=25, deadline=None)
@given(st.integers(-18, 18), st.integers(-18, 18), st.integers(0, 50))
def test_a_known_displacement_is_found_across_stains(dy: int, dx: int, seed: int) -> None:
    he, ihc = field(seed)
    actual = match(structure(he), structure(np.roll(ihc, (dy, dx), (0, 1))))
    assert actual.dy == pytest.approx(dy, abs=1)
    assert actual.dx == pytest.approx(dx, abs=1)
    assert actual.agreement > 0.5
    assert actual.displacement_px == pytest.approx(np.hypot(dy, dx), abs=1.5)


def test_a_tile_agrees_with_itself_wholly() -> None:
    he, _ = field(1)
    actual = match(structure(he), structure(he))
    assert actual.agreement == pytest.approx(1, abs=1e-5)
    assert actual.displacement_px < 0.05


def test_displacement_is_in_pixels_of_the_tile_whatever_its_size() -> None:
    he, ihc = field(3, (128, 160))
    ihc = np.roll(ihc, (5, -9), (0, 1))
    small = match(structure(he), structure(ihc))
    large = match(*(structure(np.asarray(Image.fromarray(x).resize((640, 512)))) for x in (he, ihc)))
    assert (small.dy, small.dx) == (pytest.approx(5, abs=0.6), pytest.approx(-9, abs=0.6))
    assert (large.dy, large.dx) == (pytest.approx(20, abs=2.4), pytest.approx(-36, abs=2.4))


def test_correlation_agrees_with_a_naive_twin() -> None:
    where, what = (noise(i, 2, shape).astype(np.float32) for i, shape in enumerate([(20, 24), (14, 17)]))
    surface = registration._correlation(where, what)
    assert surface.shape == (7, 8)
    for y, x in np.ndindex(surface.shape):
        window = where[y : y + 14, x : x + 17]
        assert surface[y, x] == pytest.approx(np.corrcoef(window.ravel(), what.ravel())[0, 1], abs=1e-5)


def test_a_blank_window_correlates_with_nothing() -> None:
    where, what = np.zeros((24, 24), np.float32), noise(0, 2, (8, 8)).astype(np.float32)
    where[16:, 16:] = what
    surface = registration._correlation(where, what)
    assert (surface[:8, :8] == 0).all()
    assert surface[16, 16] == pytest.approx(1, abs=1e-5)


def test_background_and_crumbs_are_not_judged() -> None:
    he, ihc = field(0)
    background = np.clip(np.random.default_rng(0).normal(243, 1.5, he.shape), 0, 255).astype(np.uint8)
    for first, second in ((he, background), (background, ihc), (he[:30, :30], ihc[:30, :30])):
        actual = match(structure(first), structure(second))
        assert np.isnan([actual.agreement, actual.dy, actual.dx, actual.sharpness]).all()


def test_a_displacement_beyond_the_reach_is_unknown() -> None:
    he, _ = field(5)
    actual = match(structure(he), structure(np.roll(he, 25, 0)))
    assert np.isnan(actual.displacement_px) or actual.agreement < 0.5


def test_tiles_of_different_sizes_are_compared_in_their_common_centre() -> None:
    he, ihc = field(2)
    whole, less = structure(he), structure(ihc)
    less = replace(less, field=less.field[10:-10, 12:-12])
    assert match(whole, less).agreement > 0.5
    assert match(less, whole).agreement > 0.5


# The verdict


def test_true_pairs_pass(true_pairs: list[Pair]) -> None:
    actual = check(true_pairs)
    assert actual.flagged == ()
    assert agreeing(actual.figures) == 1
    assert separation(actual) > 0.98
    assert np.median([f.misalignment_px for f in actual.figures]) < 1


@pytest.mark.parametrize("step", [1, 5])
def test_shuffled_pairs_are_flagged(true_pairs: list[Pair], step: int) -> None:
    actual = check(turned(true_pairs, step))
    assert len(actual.flagged) == 1
    assert "the stains disagree" in actual.flagged[0]
    assert agreeing(actual.figures) < 0.25
    assert 0.3 < separation(actual) < 0.7


def test_mirrored_partners_are_flagged(tmp_path: Path, true_pairs: list[Pair]) -> None:
    mirrored = [
        replace(p, ihc=save(np.ascontiguousarray(load_pair(p)[1][:, ::-1]), tmp_path / p.ihc.name))
        for p in true_pairs[:10]
    ]
    assert "the stains disagree" in check(mirrored).flagged[0]


def test_one_wrong_split_is_flagged_alone(tmp_path: Path, true_pairs: list[Pair]) -> None:
    wrong = turned(make_set(tmp_path, n=8, split="val", first=100))
    (sentence,) = check([*true_pairs, *wrong]).flagged
    assert "of the 8 pairs of the split 'val' agree" in sentence


def test_a_few_wrong_pairs_are_listed_and_do_not_fail_the_set(true_pairs: list[Pair]) -> None:
    mixed = [*turned(true_pairs[:4]), *true_pairs[4:]]
    actual = check(mixed)
    assert actual.flagged == ()
    assert not any(f.agrees for f in actual.figures[:4]), "none of these four agrees"
    assert all(f.agrees for f in actual.figures[4:])


def test_displaced_pairs_agree_and_their_misalignment_is_told(tmp_path: Path, true_pairs: list[Pair]) -> None:
    displaced = [
        replace(p, ihc=save(np.roll(load_pair(p)[1], (6, -8), (0, 1)), tmp_path / p.ihc.name)) for p in true_pairs[:8]
    ]
    actual = check(displaced)
    assert actual.flagged == ()
    assert np.median([f.misalignment_px for f in actual.figures]) == pytest.approx(10, abs=0.7)
    assert summary(actual)["drift_px"] == [pytest.approx(6, abs=0.7), pytest.approx(-8, abs=0.7)]


def test_too_few_pairs_are_not_judged(true_pairs: list[Pair]) -> None:
    actual = check(turned(true_pairs[:4]))
    assert actual.flagged == ()
    assert not any(f.agrees for f in actual.figures)
    assert "are too few to judge" in text(check(true_pairs[:1]))


def test_p_values_of_shuffled_pairs_are_those_of_chance(true_pairs: list[Pair]) -> None:
    chances = np.concatenate([[f.chance for f in check(turned(true_pairs, s)).figures] for s in (3, 7, 9)])
    assert 0.35 < chances.mean() < 0.65
    assert (chances <= 0.05).mean() < 0.15
    assert chances.min() > 0


def test_the_result_depends_on_the_pairs_and_the_seed_alone(true_pairs: list[Pair]) -> None:
    def agreements(actual: Check) -> list[float]:
        return [f.match.agreement for f in actual.figures]

    one, again, other = (check(true_pairs, seed=seed) for seed in (0, 0, 1))
    assert summary(one) == summary(again)
    assert agreements(one) == agreements(other)


def test_chunks_change_no_verdict(true_pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    monkeypatch.setattr("wsi_stain.pairs.check.CHUNK", 8)
    actual = check(true_pairs, progress=lambda done, total: events.append((done, total)))
    assert events == [(8, 24), (16, 24), (24, 24)]
    assert [f.pair for f in actual.figures] == true_pairs
    assert len(actual.shuffled) == 24 * 7
    assert actual.flagged == ()


# The command


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(command, ["check", *map(str, arguments)], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.return_value, result.stdout


def test_a_good_set_exits_0_and_a_wrong_one_1(tmp_path: Path) -> None:
    make_set(tmp_path, n=6)
    code, out = run(tmp_path)
    assert code == 0
    assert out.splitlines()[-1] == "flagged: nothing"
    assert "train  6      unknown  160×160   6       100%" in out
    (tmp_path / "trainB/5.png").unlink()
    code, out = run(tmp_path, "--crop", "200")
    assert code == 1
    assert sum(line.startswith("flagged: ") for line in out.splitlines()) == 6
    assert "5.png has no partner" in out
    assert "smaller than the crop of 200 px" in out


def test_a_set_of_unpaired_files_alone_is_told(tmp_path: Path) -> None:
    save(plain(1), tmp_path / "trainA/a.png")
    code, out = run(tmp_path)
    assert code == 1
    assert "a.png has no partner" in out


def test_the_output_folder_holds_figures_table_and_picture(tmp_path: Path) -> None:
    make_set(tmp_path / "set", n=6)
    code, out = run(tmp_path / "set", "--json", "-o", tmp_path / "out")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "out/pairs_check.json").read_text())
    assert json.loads(out)["all"]["agree"] == 6
    rows = list(csv.DictReader((tmp_path / "out/pairs_check.csv").read_text().splitlines()))
    assert [(Path(r["he"]).name, r["verdict"]) for r in rows] == [(f"{i}.png", "agrees") for i in range(6)]
    with Image.open(tmp_path / "out/misalignment.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    assert not (tmp_path / "out.part").exists()
    with pytest.raises(OutputError, match="out already exists: choose another name"):
        run(tmp_path / "set", "-o", tmp_path / "out")


def test_broken_files_leave_a_report(tmp_path: Path) -> None:
    make_set(tmp_path, n=6)
    for i in range(6):
        (tmp_path / f"trainA/{i}.png").write_bytes(b"nothing")
    code, out = run(tmp_path, "-o", tmp_path / "out")
    assert code == 1
    assert len(re.findall("flagged: .*png cannot be decoded", out)) == 6
    assert [r["verdict"] for r in csv.DictReader((tmp_path / "out/pairs_check.csv").read_text().splitlines())] == [
        "unreadable"
    ] * 6


# Real tiles


@pytest.mark.slow
def test_registered_sections_pass(data: Path) -> None:
    pairs = find_pairs(data / "pairs/cam52")
    assert problems(pairs, crop=512) == []
    actual = check(pairs)
    assert actual.flagged == ()
    assert agreeing(actual.figures) > 0.8
    assert separation(actual) > 0.9
    shifts = [f.misalignment_px for f in actual.figures]
    with (data / "pairs/cam52/pairs.csv").open() as file:
        stated = np.median([float(row["misalignment_px"]) for row in csv.DictReader(file)])
    assert np.nanmedian(shifts) == pytest.approx(stated, abs=3)  # by another method


def test_sections_that_do_not_correspond_are_flagged(data: Path) -> None:
    assert run(data / "pairs/unregistered")[0] == 1
    actual = check(find_pairs(data / "pairs/unregistered"))
    assert "the stains disagree" in actual.flagged[0]
    assert agreeing(actual.figures) < 0.25


@pytest.mark.slow
def test_registered_sections_with_each_others_partners_are_flagged(data: Path) -> None:
    actual = check(turned(find_pairs(data / "pairs/cam52", "train"), 40))
    assert "the stains disagree" in actual.flagged[0]
    assert agreeing(actual.figures) < 0.2


@pytest.mark.parametrize("seed", range(5))
def test_sixteen_registered_pairs_suffice(data: Path, seed: int) -> None:
    pairs = find_pairs(data / "pairs/cam52")
    chosen = [pairs[i] for i in np.random.default_rng(seed).choice(len(pairs), 16, replace=False)]
    actual = check(chosen)
    assert agreeing(actual.figures) > 0.6
    assert not any("the stains disagree:" in sentence and "split" not in sentence for sentence in actual.flagged)


@pytest.mark.slow
def test_real_neighbours_in_two_splits_are_seen_without_knowing_the_slide(data: Path) -> None:
    pairs = [replace(p, slide_id="") for p in find_pairs(data / "pairs/cam52", "train")]
    mixed = [replace(p, split="test" if i % 5 == 0 else "train") for i, p in enumerate(pairs)]
    places = {(p.x, p.y) for p in mixed if p.split == "train"}
    steps = [(-512, 0), (512, 0), (0, -512), (0, 512)]
    true = sum(
        any(((p.x or 0) + dx, (p.y or 0) + dy) in places for dx, dy in steps) for p in mixed if p.split == "test"
    )
    (sentence,) = check(mixed).flagged
    assert 0.8 * true <= int(sentence.split()[0]) <= true


def test_a_sample_of_pairs_is_spread_over_all_slides() -> None:
    pairs = [Pair(Path(f"{n}"), Path(f"{n}"), f"slide {n // 100}", "train") for n in range(2000)]
    sample = evenly_spread(pairs, 500)
    assert len(sample) == 500
    assert {pair.slide_id for pair in sample} == {f"slide {n}" for n in range(20)}
    assert evenly_spread(pairs[:3], 500) == pairs[:3]
    assert evenly_spread([], 500) == []
