"""The command line as a user meets it: what it prints, what it refuses, and with which words and exit code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from builders.slides import profile
from PIL import Image

from wsi_stain import phantom
from wsi_stain.cli import main
from wsi_stain.geometry import Size
from wsi_stain.model.bundle import DEFAULT, Bundle


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom at 0.5 µm/px; tests only read it."""
    path = tmp_path_factory.mktemp("slide") / "phantom.svs"
    phantom.write_slide(path, size=Size(1100, 1500), mpp=0.5)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def plain_tiff(path: Path, mpp: float | None = 0.5) -> Path:
    """A tiled TIFF, with or without a resolution."""
    pixels = np.random.default_rng(0).integers(100, 200, (300, 400, 3), dtype=np.uint8)
    options = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", **options)
    return path


def no_such_file(folder: Path, slide: Path) -> list[object]:
    return ["nothing.svs"]


def a_directory(folder: Path, slide: Path) -> list[object]:
    (folder / "slides").mkdir()
    return ["slides"]


def a_text_file(folder: Path, slide: Path) -> list[object]:
    (folder / "notes.svs").write_text("these are notes\n" * 50)
    return ["notes.svs"]


def a_truncated_svs(folder: Path, slide: Path) -> list[object]:
    (folder / "cut.svs").write_bytes(slide.read_bytes()[:20_000])
    return ["cut.svs"]


def mpp_missing(folder: Path, slide: Path) -> list[object]:
    return [plain_tiff(folder / "plain.tif", mpp=None)]


def mpp_1000(folder: Path, slide: Path) -> list[object]:
    return [plain_tiff(folder / "lies.tif", mpp=1000)]


def mpp_that_needs_upsampling(folder: Path, slide: Path) -> list[object]:
    return [slide, "--mpp", 2]


def unknown_model(folder: Path, slide: Path) -> list[object]:
    return [slide, "--model", "he2nothing"]


def altered_weights(folder: Path, slide: Path) -> list[object]:
    source = Bundle.open(DEFAULT).folder
    assert source
    shutil.copytree(source, folder / "altered")
    weights = folder / "altered" / "generator.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    return [slide, "--model", "altered"]


def output_of_another_run(folder: Path, slide: Path) -> list[object]:
    (folder / "out.ome.tiff").write_bytes(b"somebody's work")
    return [slide, "--model", "identity", "-o", "out.ome.tiff"]


def output_folder_missing(folder: Path, slide: Path) -> list[object]:
    return [slide, "--model", "identity", "-o", "nowhere/out.ome.tiff"]


def output_folder_that_cannot_be_written(folder: Path, slide: Path) -> list[object]:
    (folder / "file").write_text("")
    return [slide, "--model", "identity", "-o", "file/out.ome.tiff"]


def output_of_another_kind(folder: Path, slide: Path) -> list[object]:
    return [slide, "--model", "identity", "-o", "out.png"]


def geojson_that_is_not_one(folder: Path, slide: Path) -> list[object]:
    (folder / "mask.geojson").write_text('{"hello": 1}')
    return [slide, "--model", "identity", "--mask", "mask.geojson"]


def region_outside(folder: Path, slide: Path) -> list[object]:
    return [slide, "--model", "identity", "--region", "1400,0,200,200"]


def region_that_is_no_region(folder: Path, slide: Path) -> list[object]:
    return [slide, "--region", "1,2,3"]


def cuda_without_cuda(folder: Path, slide: Path) -> list[object]:
    return [slide, "--device", "cuda"]


def typo_in_a_key(folder: Path, slide: Path) -> list[object]:
    (folder / "c.yaml").write_text("grid: {overlp: 64}\n")
    return [slide, "--config", "c.yaml"]


def quality_out_of_range(folder: Path, slide: Path) -> list[object]:
    return [slide, "--quality", 101]


BAD_INPUT = [
    (no_such_file, 1, ["nothing.svs", "check the path"]),
    (a_directory, 1, ["slides", "folder"]),
    (a_text_file, 1, ["notes.svs", "unsupported format"]),
    (a_truncated_svs, 1, ["cut.svs"]),
    (mpp_missing, 1, ["plain.tif", "--mpp"]),
    (mpp_1000, 1, ["lies.tif", "1000", "0.05", "--mpp"]),
    (mpp_that_needs_upsampling, 1, ["2", "1", "--allow-upsampling"]),
    (unknown_model, 1, ["he2nothing", DEFAULT]),
    (altered_weights, 1, ["do not match its hash", "install it again"]),
    (output_of_another_run, 1, ["out.ome.tiff exists", "--restart"]),
    (output_folder_missing, 1, ["nowhere", "-o"]),
    (output_folder_that_cannot_be_written, 1, ["file", "-o"]),
    (output_of_another_kind, 1, ["out.png", ".ome.tiff"]),
    (geojson_that_is_not_one, 1, ["mask.geojson", "GeoJSON"]),
    (region_outside, 1, ["1400,0,200,200", "1500 × 1100"]),
    (region_that_is_no_region, 2, ["X,Y,W,H"]),
    (cuda_without_cuda, 2, ["--device cuda", "--device cpu"]),
    (typo_in_a_key, 2, ["grid.overlp", "grid.overlap"]),
    (quality_out_of_range, 2, ["output.quality is 101", "between 1 and 100"]),
]


@pytest.mark.parametrize(("make", "code", "words"), BAD_INPUT, ids=[row[0].__name__ for row in BAD_INPUT])
def test_bad_input_gives_one_sentence_with_the_value_and_the_next_step(
    make, code: int, words: list[str], folder: Path, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if make is cuda_without_cuda:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has CUDA")
    arguments = make(folder, slide)
    before = sorted(p.name for p in folder.iterdir())
    actual, out, err = run(capsys, "convert", *arguments)
    assert actual == code, err
    assert out == ""
    assert "Traceback" not in err
    sentence = err.splitlines()[-1]
    for word in words:
        assert word in sentence
    assert sorted(p.name for p in folder.iterdir()) == before, "a refused call must leave nothing behind"


def test_somebody_s_file_is_never_touched(slide: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "convert", *output_of_another_run(folder, slide))
    assert (folder / "out.ome.tiff").read_bytes() == b"somebody's work"


def test_convert_validate_info_and_already_done(slide: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "convert", slide, "--model", "identity", "--workers", 0)
    assert (code, out.strip()) == (0, "phantom.identity.ome.tiff"), err
    assert sorted(p.name for p in folder.iterdir()) == [
        "phantom.identity.ome.tiff",
        "phantom.identity.ome.tiff.run.json",
        "phantom.identity.tissue.geojson",
    ]
    content = (folder / "phantom.identity.ome.tiff").read_bytes()
    code, _, err = run(capsys, "convert", slide, "--model", "identity", "--workers", 0)
    assert code == 0
    assert "already done" in err
    assert (folder / "phantom.identity.ome.tiff").read_bytes() == content
    code, out, err = run(capsys, "validate", "phantom.identity.ome.tiff")
    assert (code, out) == (0, "")
    code, out, _ = run(capsys, "info", "phantom.identity.ome.tiff", "--json")
    facts = json.loads(out)
    assert (facts["width"], facts["height"], facts["mpp"], facts["magnification"]) == (1500, 1100, 0.5, 20)
    assert facts["virtual"]
    code, out, _ = run(capsys, "info", slide)
    assert "1500 × 1100" in out


def test_restart_replaces_and_json_gives_the_record(
    slide: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out.ome.tiff").write_bytes(b"old")
    code, out, err = run(
        capsys, "convert", slide, "--model", "identity", "-o", "out.ome.tiff", "--restart", "--json", "--workers", 0
    )
    assert code == 0, err
    record = json.loads(out)
    assert record["fingerprint"]["model"] == "identity"
    assert record == json.loads((folder / "out.ome.tiff.run.json").read_text())
    assert (folder / "out.ome.tiff").stat().st_size > 10_000


def test_dry_run_says_what_would_be_done_and_does_nothing(
    slide: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "convert", slide, "--model", "identity", "--dry-run")
    assert code == 0
    assert "1500 × 1100 px at 0.5 µm/px" in out
    assert list(folder.iterdir()) == []


def test_region_is_the_same_pixels_as_of_the_whole(
    slide: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", "identity", "--mask", "none", "--compression", "deflate", "--workers", 0]
    run(capsys, "convert", slide, *common, "-o", "all.ome.tiff")
    run(capsys, "convert", slide, *common, "-o", "part.ome.tiff", "--region", "301,202,400,300")
    whole, part = (tifffile.imread(folder / f"{name}.ome.tiff", series=0, level=0) for name in ("all", "part"))
    np.testing.assert_array_equal(part, whole[202:502, 301:701])


def test_validate_fails_on_a_file_that_is_no_ome_tiff(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "x.ome.tiff").write_bytes(b"not a tiff")
    code, out, err = run(capsys, "validate", "x.ome.tiff")
    assert code == 1
    assert out.startswith("error:")
    assert err.strip() == "x.ome.tiff: 1 error, 0 warnings"


def test_models_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "models", "list")
    assert code == 0
    assert f"{DEFAULT}  " in out
    assert "(default)" in out
    code, out, _ = run(capsys, "models", "show", DEFAULT)
    assert code == 0
    assert "RESEARCH USE ONLY" in out


def test_a_model_without_problems_passes_its_check(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "models", "check", "identity")
    assert (code, out, err.strip()) == (0, "", "identity: OK")


def test_a_command_that_does_not_exist_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "convrt")
    assert code == 2
    assert "convrt" in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "--debug", "convert", "nothing.svs")
    assert "Traceback" in err


def test_an_error_of_the_system_is_a_sentence(slide: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "phantom.identity.ome.tiff.run.json").mkdir()
    code, _, err = run(capsys, "convert", slide, "--model", "identity", "--workers", 0)
    assert code == 1
    assert "Traceback" not in err
    assert "phantom.identity.ome.tiff.run.json: Is a directory" in err.splitlines()[-1]


def test_background_without_tissue_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    tifffile.imwrite(folder / "glass.tif", np.full((1500, 1500, 3), 243, np.uint8), tile=(128, 128), **options)
    code, _, err = run(capsys, "convert", "glass.tif", "--model", "identity", "--workers", 0)
    assert code == 0
    assert "no tissue was found" in err


def test_demo_makes_a_phantom_and_its_virtual_stain(folder: Path, monkeypatch, capsys) -> None:
    from wsi_stain.cli import demo

    monkeypatch.setattr(demo, "SIDE_UM", (700, 600))
    code, out, err = run(capsys, "demo", "--device", "cpu")
    assert code == 0, err
    result = Path(out.strip())
    assert result.name.startswith("phantom.")
    assert "research use only" in err
    assert "QuPath" in err
    assert run(capsys, "validate", result)[0] == 0
    he, stain = (tifffile.imread(p, series=0, level=0) for p in (folder / "wsi-stain-demo/phantom.svs", result))
    assert stain.shape == (600, 700, 3)
    assert np.abs(stain.astype(int) - he[::2, ::2].astype(int)).mean() > 3, "the stain must differ from the H&E"
    code, _, err = run(capsys, "demo", "--device", "cpu")
    assert code == 0, "a second call must find everything done"


def test_a_stain_of_a_real_slide_is_marked_virtual_and_carries_no_label(
    data: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = data / "slides" / "CMU-1-Small-Region.svs"
    code, out, err = run(capsys, "convert", source, "--region", "0,0,1024,1024", "--device", "cpu")
    assert code == 0, err
    output = Path(out.strip())
    with tifffile.TiffFile(output) as tiff:
        assert len(tiff.series) == 1, "no label, no macro"
        text = tiff.ome_metadata or ""
    assert "VIRTUAL STAIN - NOT A PHYSICAL IHC" in text
    assert "Aperio" not in text
    assert Bundle.open(DEFAULT).sha256 in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "end of a cluster's job"])
def test_an_interrupted_call_says_how_to_go_on(slide: Path, folder: Path, number: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "wsi_stain",
        "convert",
        str(slide),
        "--model",
        "identity",
        "--set",
        "grid.block=512",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder)
    deadline = time.monotonic() + 60
    while not (folder / "phantom.identity.ome.tiff.spool").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0 or "\ndone: " in err:  # the signal may also meet an interpreter that is exiting
        pytest.skip("the conversion was faster than the interruption")
    assert process.returncode == 130, err
    assert "re-run the same command" in err
    again = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=folder, env=dict(os.environ))
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("content", ["{", "{}", '{"attributes": {"ome": {"multiscales": []}}}'])
def test_info_on_a_zarr_that_is_no_image_is_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (folder / "x.ome.zarr").mkdir()
    (folder / "x.ome.zarr" / "zarr.json").write_text(content)
    code, _, err = run(capsys, "info", "x.ome.zarr")
    assert code == 1
    assert "x.ome.zarr holds no OME-Zarr image" in err or "x.ome.zarr is not a readable Zarr" in err


def test_a_colour_profile_is_applied_and_recorded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.full((64, 64, 3), (200, 100, 50), np.uint8)
    actual = {}
    for name, icc in (("plain", None), ("profiled", profile(1.4))):
        Image.fromarray(pixels).save(f"{name}.png", icc_profile=icc)
        options = ["--model", "identity", "--mask", "none", "--mpp", 0.5, "--compression", "deflate", "--workers", 0]
        code, out, err = run(capsys, "convert", f"{name}.png", *options, "--json")
        assert code == 0, err
        stained = tifffile.imread(f"{name}.identity.ome.tiff", series=0, level=0)
        actual[name] = json.loads(out)["fingerprint"]["icc_profile"], np.array_equal(stained, pixels)
    assert actual["plain"] == ("none: pixels as stored", True)
    assert actual["profiled"][0] != actual["plain"][0]
    assert not actual["profiled"][1]
    _, out, _ = run(capsys, "info", "profiled.identity.ome.tiff", "--json")
    assert json.loads(out)["annotations"]["icc_profile"] == actual["profiled"][0]
