"""The IHC slide in the frame of the H&E: the right pixels, marked as what they are, and nothing where nothing fits."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import tifffile
from builders.cases import shifted, write_case, write_scan
from builders.conversions import pixels_of
from builders.pyramids import ArraySource, metadata
from builders.sections import UM
from builders.slides import damage, tissue, write_svs
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.config.convert import OutputConfig
from wsi_stain.errors import OutputError, SlideError
from wsi_stain.files.notice import NOTICE, RESAMPLED
from wsi_stain.geometry import Box
from wsi_stain.output import ometiff
from wsi_stain.output.encoding import Encoding
from wsi_stain.output.virtual import virtual_stain
from wsi_stain.pairing import warp as module
from wsi_stain.pairing.warp import WarpRequest, warp
from wsi_stain.registration.affine import Affine
from wsi_stain.registration.field import Deformation
from wsi_stain.registration.images import background_in
from wsi_stain.registration.structure import places
from wsi_stain.registration.transform import Piece
from wsi_stain.slide.slide import Slide

LOSSLESS = OutputConfig(compression="deflate")
SIDE = 320


def wave(places_px: np.ndarray) -> np.ndarray:
    """A smooth picture, given at any place (h, w, 2): uint8 (h, w, 3); its second derivatives are below 0.4."""
    y, x = np.moveaxis(places_px, -1, 0)
    waves = [np.sin(y / 17 + c) * np.cos(x / (23 - 4 * c)) for c in range(3)]
    return np.rint(np.stack([140 + 50 * wave for wave in waves], -1)).astype(np.uint8)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """Slides of 700 × 620 and 640 × 660 px at 0.5 µm/px; nothing moves."""
    he = write_svs(tmp_path / "he.svs", tissue(700, 620), mpp=0.5)
    ihc = write_scan(tmp_path / "ihc.tif", tissue(640, 660, seed=1), 0.5)
    return write_case(tmp_path / "case", he, ihc, mpp=0.5)


def request(case: Path, name: str = "out.ome.tiff", **changes: object) -> WarpRequest:
    return WarpRequest(case, case.parent / name, **{"encoding": LOSSLESS, "workers": 0, **changes})  # type: ignore


def test_a_known_warp_is_undone(tmp_path: Path) -> None:
    centre = np.full(2, SIDE * UM / 2)
    turned = Affine.turned(140, mirrored=False, about=centre, to=centre + np.array([70.0, -40.0]))
    y, x = np.mgrid[:20, :20] / 3
    truth = Piece(
        turned, Deformation((100 * np.stack([np.sin(x), np.cos(y + x)], -1)).astype(np.float32), SIDE * UM / 20)
    )
    grid = places((SIDE, SIDE), UM).astype(np.float64)
    he = write_scan(tmp_path / "he.tif", wave(grid / UM), UM)
    ihc = write_scan(tmp_path / "ihc.tif", wave(truth.inverse(grid) / UM), UM)
    case = write_case(tmp_path / "case", he, ihc, truth, mpp=UM)
    warp(request(case))
    result = pixels_of(tmp_path / "out.ome.tiff").astype(int)
    target = truth(grid) / UM - 0.5
    inside = ((target >= 0) & (target <= SIDE - 1)).all(-1)
    beyond = ((target < -0.6) | (target > SIDE - 0.4)).any(-1)
    assert inside.mean() > 0.7
    assert beyond.mean() > 0.02
    assert np.abs(result - wave(grid / UM))[inside].max() <= 2  # rounded twice, and linear between pixels
    assert (result[beyond] == 243).all()


def test_where_nothing_moves_the_pixels_are_those_of_the_ihc(case: Path) -> None:
    warp(request(case))
    result = pixels_of(case.parent / "out.ome.tiff")
    assert result.shape == (700, 620, 3)
    np.testing.assert_array_equal(result[:640], tissue(640, 660, seed=1)[:, :620])
    warp(request(case, "half.ome.tiff", mpp=1.0))
    with Slide.open(case.parent / "ihc.tif") as slide:
        assert (result[640:] == background_in(slide.thumbnail(1024))).all()
        half = slide.at(1.0).read(Box(0, 0, 320, 310))
    np.testing.assert_array_equal(pixels_of(case.parent / "half.ome.tiff")[:320], half)


def test_blocks_threads_and_an_interruption_change_nothing(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warp(request(case))
    whole = pixels_of(case.parent / "out.ome.tiff")
    monkeypatch.setattr(module, "BLOCK_PX", 512)
    warp(request(case, "blocks.ome.tiff", workers=2))

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    for _ in range(2):  # the second run begins where the first one stopped
        with pytest.raises(KeyboardInterrupt):
            warp(request(case, "again.ome.tiff"), stop)
    assert not (case.parent / "again.ome.tiff").exists()
    counts = []
    warp(request(case, "again.ome.tiff"), lambda done, total: counts.append((done, total)))
    assert counts == [(3, 4), (4, 4)]
    np.testing.assert_array_equal(pixels_of(case.parent / "blocks.ome.tiff"), whole)
    np.testing.assert_array_equal(pixels_of(case.parent / "again.ome.tiff"), whole)
    assert sorted(p.name for p in case.parent.glob("*ome*")) == ["again.ome.tiff", "blocks.ome.tiff", "out.ome.tiff"]


def test_the_file_states_that_it_is_a_real_stain_and_breaks_no_rule(tmp_path: Path) -> None:
    he, ihc = (write_svs(tmp_path / f"{n}-SECRET.svs", tissue(600, 700, i), mpp=0.5) for i, n in enumerate(("h", "i")))
    case = write_case(tmp_path / "block7", he, ihc, mpp=0.5)
    result = CliRunner().invoke(group, ["pairs", "warp", str(case), "-o", str(tmp_path / "w.ome.tiff")])
    assert result.exit_code == 0, result.output
    output = tmp_path / "w.ome.tiff"
    assert ometiff.problems(output) == []
    facts = ometiff.describe(output)
    assert not facts["virtual"]
    assert facts["annotations"]["notice"] == RESAMPLED
    assert facts["annotations"]["case"] == "block7"
    with Slide.open(he) as one, Slide.open(output) as other:
        assert (one.size, one.mpp) == (other.size, other.mpp)
    hashes = [facts["annotations"][f"{what}_sha256"] for what in ("frame", "source", "registration")]
    assert hashes == [sha256(p.read_bytes()).hexdigest() for p in (he, ihc, case / "registration.npz")]
    content = output.read_bytes()
    assert not any(text in content for text in (b"SECRET", b"DOE", b"secret", str(tmp_path).encode(), NOTICE.encode()))
    assert b"AISystemUsed" not in content
    assert virtual_stain(output) is None
    with tifffile.TiffFile(output) as tiff:
        assert len(tiff.series[0].levels) == 2
        error = tiff.asarray().astype(int) - tissue(600, 700, 1)
    assert np.abs(error).mean() < 4  # JPEG twice


def test_a_resampled_stain_without_its_origin_breaks_the_rule(tmp_path: Path) -> None:
    path = tmp_path / "x.ome.tiff"
    ometiff.write(
        path, ArraySource(tissue(64, 64), Encoding("deflate")), metadata(path.name, annotations={}, notice=RESAMPLED)
    )
    (problem,) = ometiff.problems(path)
    assert (problem.rule, problem.severity) == (20, "error")
    assert "case, source_sha256, frame_sha256, registration_sha256" in problem.message


def test_what_cannot_be_read_is_background_and_listed(tmp_path: Path) -> None:
    he, ihc = (write_svs(tmp_path / f"{n}.svs", tissue(600, 700, i), mpp=0.5) for i, n in enumerate(("he", "ihc")))
    damage(ihc, 0)
    case = write_case(tmp_path / "case", he, ihc, mpp=0.5)
    warp(request(case))
    result = pixels_of(tmp_path / "out.ome.tiff")
    with Slide.open(ihc) as slide:
        assert (result[:256, :256] == background_in(slide.thumbnail(1024))).all()
    assert result[256:].std() > 10
    assert ometiff.describe(tmp_path / "out.ome.tiff")["rois"] == 1


def test_what_is_not_known_or_not_the_same_is_refused(case: Path) -> None:
    folder = case.parent
    he, ihc = folder / "he.svs", folder / "ihc.tif"
    refused = write_case(folder / "refused", he, ihc, mpp=0.5, verdict="refuse")
    with pytest.raises(OutputError, match=r"the slides of .*refused do not correspond"):
        warp(request(refused))
    with pytest.raises(OutputError, match=r"is not a finished case: its pairs\.json is missing"):
        warp(request(folder))
    with pytest.raises(SlideError, match=r"ihc\.tif is not the slide that was registered \(he\.svs\)"):
        warp(request(case, he=ihc))
    with pytest.raises(SlideError, match=r"gone\.tif does not exist; pass the slide with --ihc"):
        warp(request(case, ihc=folder / "gone.tif"))
    with pytest.raises(SlideError, match=r"ihc\.tif has 0\.5 µm/px, coarser than 0\.25; pass --mpp 0\.5 or more"):
        warp(request(case, mpp=0.25))
    old = write_case(folder / "old", he, ihc, mpp=0.5, paths={})
    with pytest.raises(SlideError, match=r"does not contain the path of its he slide; pass --he"):
        warp(request(old))
    (refused / "registration.npz").write_bytes((case / "registration.npz").read_bytes())
    other = write_case(folder / "other", ihc, he, shifted(9, 9), mpp=0.5)
    (other / "registration.npz").write_bytes((case / "registration.npz").read_bytes())
    with pytest.raises(OutputError, match=r"registration\.npz is of other slides than"):
        warp(request(other))
    assert not list(folder.glob("*.ome.tiff*"))


def test_nothing_is_overwritten(case: Path) -> None:
    (case.parent / "out.ome.tiff").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"out\.ome\.tiff exists; choose another name"):
        warp(request(case))
    assert (case.parent / "out.ome.tiff").read_bytes() == b"mine"
    with pytest.raises(OutputError, match=r"x\.svs does not end in \.ome\.tiff"):
        warp(request(case, "x.svs"))
