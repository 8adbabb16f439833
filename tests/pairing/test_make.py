"""Pairs from two slides: the tiles, the table, the splits, and the same files after an interruption."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from builders.conversions import request_of
from builders.sections import UM, made_pair, rgb
from builders.slides import write_svs
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.conversion.engine import convert
from wsi_stain.errors import ConfigError, OutputError, SlideError
from wsi_stain.files.record import read
from wsi_stain.geometry import Box, Size
from wsi_stain.pairing.make import make
from wsi_stain.pairing.request import PairsRequest
from wsi_stain.pairing.resample import Warped, he_tile
from wsi_stain.pairing.sheet import requests, split_groups
from wsi_stain.pairing.splits import split_of
from wsi_stain.pairs.pair import find_pairs, load_pair
from wsi_stain.registration.affine import Affine
from wsi_stain.registration.field import Deformation
from wsi_stain.registration.fragments import Fragments
from wsi_stain.registration.transform import Piece, Transform
from wsi_stain.slide.slide import Slide


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, pair = tmp_path_factory.mktemp("slides"), made_pair(bend_um=100.0)
    he = write_svs(folder / "he.svs", rgb(pair.he), mpp=UM)
    return he, write_svs(folder / "ihc.svs", rgb(pair.ihc), mpp=UM)


def request(slides: tuple[Path, Path], output: Path) -> PairsRequest:
    return PairsRequest(*slides, output, mpp=UM, tile=64, patient="p1", workers=0)


def contents(folder: Path) -> dict[str, str]:
    """Hashes of what training reads, and of the transform."""
    files = [*folder.glob("he/*"), *folder.glob("ihc/*"), folder / "pairs.csv", folder / "registration.npz"]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.slow
def test_two_slides_become_pairs_that_training_reads_and_an_interrupted_run_the_same(
    slides: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = make(request(slides, tmp_path / "case"))
    assert result.verdict == "register"
    pairs = find_pairs(tmp_path / "case")
    assert len(pairs) == result.content["tiles"] > 8
    assert {p.split for p in pairs} == {"train", "val", "test"}
    assert {p.patient_id for p in pairs} == {"p1"}
    r = [np.corrcoef(*(side.mean(-1).ravel() for side in load_pair(p)))[0, 1] for p in pairs]
    assert np.median(r) > 0.7

    def stopped(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(request(slides, tmp_path / "case2"), lambda stage, done, total: stopped(done))
    assert not (tmp_path / "case2" / "pairs.json").exists()
    again = request(slides, tmp_path / "case2")
    monkeypatch.setattr("wsi_stain.pairing.make.register", None)  # the transform of the first run is used
    make(again)
    names = {k: v for k, v in contents(tmp_path / "case2").items() if k != "pairs.csv"}
    assert names == {k: v for k, v in contents(tmp_path / "case").items() if k != "pairs.csv"}
    assert make(again).content == read(tmp_path / "case2" / "pairs.json")  # done already
    with pytest.raises(OutputError, match="other slides or settings"):
        make(PairsRequest(*slides, tmp_path / "case2", mpp=UM, tile=128))


def test_both_sides_are_blurred_alike(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1400, 1400, 1), np.uint8).repeat(3, axis=2)
    turned = Affine.turned(33, mirrored=False, about=np.full(2, 700.0), to=np.full(2, 700.0))
    transform = Transform((Piece(turned, Deformation.still()),), Fragments(np.zeros((1, 1), np.uint8), 1.0), {})
    with Slide.open(write_svs(tmp_path / "a.svs", noise, mpp=1.0, quality=100)) as slide:
        view = slide.at(1.0)
        box = Box.at(400, 400, Size(512, 512))
        he, (ihc, inside) = he_tile(view, box), Warped(view, transform, 1.0, drifts=True).read(box)
    assert inside.all()
    assert he.std() == pytest.approx(ihc.std(), rel=0.05)
    assert he.std() < 0.9 * noise.std()


def test_splits_have_a_buffer_column_between() -> None:
    splits = split_of(range(20), "columns")
    assert [splits.get(i, "-")[:2] for i in range(20)] == ["tr"] * 12 + ["-"] + ["va"] * 3 + ["-"] + ["te"] * 3
    assert split_of([3, 4], "val") == {3: "val", 4: "val"}


def test_a_sheet_gives_each_patient_one_split(tmp_path: Path) -> None:
    lines = [f"c{i},h{i}.svs,i{i}.svs,p{i // 2}" for i in range(8)]
    (tmp_path / "sheet.csv").write_text("case,he,ihc,patient_id\n" + "\n".join(lines))
    like = PairsRequest(Path("-"), Path("-"), tmp_path / "out")
    rows = requests(tmp_path / "sheet.csv", like, "patient")
    by_patient = {row.patient: {r.split for r in rows if r.patient == row.patient} for row in rows}
    assert all(len(splits) == 1 for splits in by_patient.values())
    assert set.union(*by_patient.values()) == {"train", "val", "test"}
    assert rows[0].he == tmp_path / "h0.svs"
    with pytest.raises(ConfigError, match="cannot be divided"):
        split_groups(["a", "b"])


@pytest.mark.slow
def test_what_must_not_become_pairs_is_refused(slides: tuple[Path, Path], tmp_path: Path) -> None:
    he, ihc = slides
    copy = tmp_path / "copy.svs"
    copy.write_bytes(he.read_bytes())
    with pytest.raises(SlideError, match="are the same slide"):
        make(PairsRequest(he, copy, tmp_path / "twice", mpp=UM))
    virtual = tmp_path / "virtual.ome.tiff"
    convert(request_of(he, virtual, model="identity", mask="none"))
    for number, both in enumerate([(he, virtual), (virtual, ihc)]):
        with pytest.raises(SlideError, match=r"virtual\.ome\.tiff is a virtual stain"):
            make(PairsRequest(*both, tmp_path / str(number), mpp=UM))
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.slow
def test_one_slide_alone_is_not_taken_for_a_sheet(slides: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pass both slides, or a CSV of cases"):
        CliRunner().invoke(group, ["pairs", "make", str(slides[0]), "-o", str(tmp_path)], catch_exceptions=False)


@pytest.mark.slow
def test_slides_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    pair = made_pair(bend_um=0.0)
    pink = 0.7 * np.repeat(pair.he.tissue[..., None], 3, 2) * [0.07, 0.99, 0.11]  # eosin (Ruifrok and Johnston, 2001)
    he = np.rint(rgb(pair.he) * 10**-pink).astype(np.uint8)
    brown = rgb(pair.he, (0.27, 0.57, 0.78))
    paths = [write_svs(tmp_path / f"{name}.svs", pixels, mpp=UM) for name, pixels in (("he", he), ("ihc", brown))]
    with pytest.raises(SlideError, match=r"ihc\.svs is brown .*he\.svs looks like H&E: pass the H&E slide first"):
        make(PairsRequest(paths[1], paths[0], tmp_path / "out", mpp=UM))


def test_files_of_others_are_not_touched(slides: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("he/mine.png", "pairs.csv"):
        mine = tmp_path / name.replace("/", "_") / name
        mine.parent.mkdir(parents=True)
        mine.write_bytes(b"mine")
        with pytest.raises(OutputError, match="of another origin; choose another folder"):
            make(request(slides, tmp_path / name.replace("/", "_")))
        assert mine.read_bytes() == b"mine"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="is a file; choose a folder with -o"):
        make(request(slides, tmp_path / "file"))


def test_what_cannot_be_cut_is_said_before_the_registration(slides: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"he\.svs has 8 µm/px, coarser than the tiles; pass --mpp 8 or more"):
        make(PairsRequest(*slides, tmp_path / "fine", mpp=1.0))
    blank = write_svs(tmp_path / "blank.svs", np.full((640, 640, 3), 243, np.uint8), mpp=UM)
    with pytest.raises(SlideError, match=r"blank\.svs shows no tissue"):
        make(PairsRequest(blank, slides[1], tmp_path / "blank", mpp=UM))


def test_a_group_of_a_sheet_stays_in_one_split(tmp_path: Path) -> None:
    rows = [f"c{i},he{i % 4}.svs,ihc{i}.svs,p{i % 4}," for i in range(8)]
    (tmp_path / "s.csv").write_text("\n".join(["case,he,ihc,patient_id,split", *rows]))
    like = PairsRequest(tmp_path / "s.csv", tmp_path / "s.csv", tmp_path / "out")
    for by in ("slide", "patient"):
        splits = [row.split for row in requests(tmp_path / "s.csv", like, by)]
        assert splits[:4] == splits[4:]
        assert set(splits) == {"train", "val", "test"}
    rows[0] += "test"
    (tmp_path / "s.csv").write_text("\n".join(["case,he,ihc,patient_id,split", *rows]))
    splits = [row.split for row in requests(tmp_path / "s.csv", like, "patient")]
    assert splits[0] == splits[4] == "test"
    rows[4] += "train"
    (tmp_path / "s.csv").write_text("\n".join(["case,he,ihc,patient_id,split", *rows]))
    with pytest.raises(ConfigError, match=r"line 6: patient_id 'p0' is in train here and in test above"):
        requests(tmp_path / "s.csv", like, "patient")
