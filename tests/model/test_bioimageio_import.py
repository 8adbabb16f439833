"""Model folders of BioImage.IO become bundles; hostile ones are refused in one sentence, without the network."""

import hashlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders.bioimageio import DESCRIPTION, axes, foreign, own_bundle
from builders.conversions import noise
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.errors import BundleError, ConfigError, WsiStainError
from wsi_stain.model.bioimageio_export import export_folder
from wsi_stain.model.bioimageio_import import read_folder
from wsi_stain.model.bioimageio_values import data_range, input_values, output_values
from wsi_stain.model.bundle import Bundle
from wsi_stain.model.importing import import_model, settings

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.slow
def test_our_own_export_comes_back_with_the_same_pixels(tmp_path: Path) -> None:
    bundle = Bundle.open(own_bundle(tmp_path / "small"))
    export_folder(bundle.folder or "", tmp_path / "folder", authors=["A"])
    call = ["models", "import", str(tmp_path / "folder"), "-o", str(tmp_path / "again")]
    result = CliRunner().invoke(group, call)
    assert result.exit_code == 0, result.output
    again = Bundle.open(tmp_path / "again")
    for key in ("mpp", "tile", "overlap", "multiple", "stain", "expects", "background", "version"):
        assert getattr(again, key) == getattr(bundle, key), key
    assert again.config.licence == "CC-BY-4.0"

    tiles = np.stack([noise(64, 64, seed) for seed in range(4)])
    session = onnxruntime.InferenceSession(tmp_path / "folder" / "generator.onnx")
    for tile, actual in zip(tiles, again.generator("cpu")(tiles), strict=True):
        x = (tile.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)
        y = session.run(["stain"], {"he": x})[0][0].transpose(1, 2, 0)
        expected = np.clip(np.rint((y + 1) * 127.5), 0, 255)
        assert expected.std() > 1
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(
        again.generator("cpu")(np.load(tmp_path / "folder" / "test_input.npy").transpose(0, 2, 3, 1)),
        np.load(tmp_path / "folder" / "test_output.npy").transpose(0, 2, 3, 1),
    )


def with_tensors(folder: Path, he: np.ndarray, stain: np.ndarray, change=None) -> Path:
    """A folder of the blur with these test tensors, (1, 3, H, W)."""
    folder.mkdir()
    for name, values in (("in.npy", he), ("out.npy", stain)):
        np.save(folder / name, values)

    def add(description):
        for key, name in (("inputs", "in.npy"), ("outputs", "out.npy")):
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            description[key][0]["test_tensor"] = {"source": name, "sha256": digest}
        if change:
            change(description)

    return foreign(folder, add)


def blurred(he: np.ndarray) -> np.ndarray:
    """What the network of `foreign` makes of uint8 (1, 3, H, W): a mean of 7 × 7 px over zeros, from 0 to 1."""
    padded = np.pad(he / 255, ((0, 0), (0, 0), (3, 3), (3, 3)))
    return np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(2, 3)).mean(axis=(4, 5)).astype(np.float32)


def imported(folder: Path, target: Path, **more: object) -> Bundle:
    resource = read_folder(folder)
    config = settings({"stain": "blur", "tile": 64, **more}, None, resource.facts)
    return import_model(resource.weights, target, config, resource.tensors)


@pytest.mark.slow
def test_test_tensors_prove_values_colours_and_layout(tmp_path: Path) -> None:
    he = noise(64, 64).transpose(2, 0, 1)[None]
    right = blurred(he)
    imported(with_tensors(tmp_path / "right", he, right), tmp_path / "bundle")
    wrong = {"colours": right[:, ::-1], "turned": right.transpose(0, 1, 3, 2), "inverse": 1 - right}
    for name, stain in wrong.items():
        with pytest.raises(BundleError, match="agrees with the folder's test tensors only to"):
            imported(with_tensors(tmp_path / name, he, stain), tmp_path / f"bundle-{name}")
        assert not (tmp_path / f"bundle-{name}" / "generator.onnx").exists()
    bgr = with_tensors(tmp_path / "bgr", he[:, ::-1], right[:, ::-1])  # the blur treats the colours alike
    imported(bgr, tmp_path / "bundle-bgr", colours="bgr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "in.npy").write_bytes(b"x"), "does not match test_tensor.sha256"),
        (lambda f: (f / "in.npy").unlink(), "which is not an .npy file of the folder"),
        (lambda f: np.save(f / "in.npy", np.full((1, 3, 64, 64), None)), "is not an .npy file of numbers"),
        (lambda f: np.save(f / "in.npy", np.zeros((3, 64, 64), np.uint8)), "must be one image with four axes"),
        (lambda f: np.save(f / "out.npy", np.full((1, 3, 64, 64), 7.0)), "outside the stated range of 0 to 1"),
        (lambda f: lie_about_size(f / "in.npy"), "is not an .npy file of numbers"),
        (
            lambda f: (f / "in.npy").write_bytes((f / "in.npy").read_bytes()[:70] + b" " * 99),
            "not an .npy file of numbers",
        ),
    ],
)
def test_damaged_or_hostile_test_tensors_are_a_sentence(tmp_path: Path, change, message) -> None:
    he = noise(64, 64).transpose(2, 0, 1)[None]
    folder = with_tensors(tmp_path / "folder", he, blurred(he))
    change(folder)
    if "sha256" not in message:
        text = (folder / "rdf.yaml").read_text()
        description = yaml.safe_load(text)
        for key in ("inputs", "outputs"):
            del description[key][0]["test_tensor"]["sha256"]
        (folder / "rdf.yaml").write_text(yaml.safe_dump(description))
    with pytest.raises(BundleError, match=message):
        read_folder(folder)


def lie_about_size(path: Path) -> None:
    """The header of 3 TB, and a few bytes."""
    np.save(path, np.zeros((1, 3, 64, 64), np.uint8))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(1, 3, 64, 64), }" + b" " * 8, b"(1, 3, 999999, 999999), }")[:400])


def test_a_folder_of_another_tool_states_what_it_can(tmp_path: Path) -> None:
    resource = read_folder(foreign(tmp_path / "blur"))
    assert resource.facts == {
        "kind": "onnx",
        "mpp": 0.5,
        "licence": "MIT",
        "version": "2.1.0",
        "values_in": (0.0, 1.0),
        "values_out": (0.0, 1.0),
        "colours": "rgb",
        "tile": 512,
        "multiple": 16,
        "overlap": 16,
    }
    with pytest.raises(ConfigError, match=r"^rdf\.yaml does not state stain \(.*\); pass --stain$"):
        settings({}, None, resource.facts)
    config = settings({"stain": "blur", "tile": 64}, None, resource.facts)
    bundle = import_model(resource.weights, tmp_path / "bundle", config)
    tile = noise(64, 64)
    mean = np.mean([tile[32 + dy, 32 + dx] for dy in range(-3, 4) for dx in range(-3, 4)], axis=0)
    np.testing.assert_allclose(bundle.generator("cpu")(tile[None])[0][32, 32], mean, atol=0.51)


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    def bare(description: dict) -> None:
        del description["license"], description["inputs"][0]["data"], description["outputs"][0]["data"]
        for tensor in (description["inputs"][0], description["outputs"][0]):
            tensor["axes"] = [{**axis, "unit": None} if axis["type"] == "space" else axis for axis in tensor["axes"]]
        description["inputs"][0]["axes"] = axes(64, ("a", "b", "c"))
        description["outputs"][0]["axes"] = axes(64)

    folder = foreign(tmp_path / "bare", bare)
    result = CliRunner().invoke(group, ["models", "import", str(folder), "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, ConfigError)
    options = "--stain, --licence, --values-in, --values-out, --colours, --multiple"
    message = str(result.exception)
    assert message.endswith(f"pass {options}"), message
    assert not (tmp_path / "out").exists()


def test_only_a_file_needs_a_kind(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"x")
    for arguments, words in (
        ([str(tmp_path / "x.onnx")], "Missing option '--kind'"),
        ([str(foreign(tmp_path / "f")), "--kind", "resnet-6"], "only the ONNX weights"),
    ):
        result = CliRunner().invoke(group, ["models", "import", *arguments, "-o", str(tmp_path / "out")])
        assert result.exit_code == 2
        assert words in result.output
    with pytest.raises(BundleError, match=r"has no rdf\.yaml; pass a weight file"):
        read_folder(tmp_path)


def test_fluorescence_channels_and_a_fixed_size(tmp_path: Path) -> None:
    def change(description: dict) -> None:
        description["inputs"][0]["axes"] = axes(96, ("B", "G", "R"))
        description["outputs"][0]["axes"] = axes(96, ("DAPI", "CD3"), halo=24)

    facts = read_folder(foreign(tmp_path / "f", change)).facts
    assert [channel["name"] for channel in facts["channels"]] == ["DAPI", "CD3"]
    assert facts["channels"][0]["colour"] == [0, 0, 255]
    assert (facts["colours"], facts["tile"], facts["overlap"], facts["multiple"]) == ("bgr", 96, 48, 48)


def tensor(kind: str = "uint8", limits: list | None = None, **steps: list) -> dict:
    return {"data": {"type": kind, **({"range": limits} if limits else {})}, **steps}


def step(name: str, **arguments: object) -> dict:
    return {"id": name, "kwargs": arguments}


UNIT = step("scale_linear", gain=1 / 127.5, offset=-1.0)
ROUNDED = [step("scale_linear", gain=127.5, offset=128.0), step("clip", min=0, max=255)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (tensor(preprocessing=[UNIT, step("ensure_dtype", dtype="float32")]), (-1, 1)),
        (tensor(), (0, 255)),
        (tensor("float32", [0, 1]), (0, 1)),
        (tensor("float32", [0, 1], preprocessing=[step("scale_linear", gain=[2, 2, 2], offset=[-1, -1, -1])]), (-1, 1)),
        (tensor(preprocessing=[step("fixed_zero_mean_unit_variance", mean=127.5, std=51.0)]), (-2.5, 2.5)),
        (tensor(preprocessing=[step("clip", min=0, max=255), UNIT]), (-1, 1)),
        (tensor("float32"), None),
        (tensor("uint16", [None, 255]), None),
    ],
)
def test_values_of_the_input(source: dict, expected: tuple | None) -> None:
    actual = input_values(source, data_range(source))
    assert actual == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (tensor("float32", [-1, 1]), (-1, 1)),
        (tensor(postprocessing=[*ROUNDED, step("ensure_dtype", dtype="uint8")]), (-1, 1)),
        (tensor("float32", [0, 255], postprocessing=[step("scale_linear", gain=255.0, offset=0.0)]), (0, 1)),
        (tensor("float32", postprocessing=[step("clip", min=0, max=1)]), None),
    ],
)
def test_values_of_the_output(target: dict, expected: tuple | None) -> None:
    actual = output_values(target, data_range(target))
    assert actual == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([step("scale_range", min_percentile=1)], "draws seams"),
        ([step("zero_mean_unit_variance")], "draws seams"),
        ([step("clip", max_percentile=99)], "percentiles of each tile"),
        ([step("clip", min=20, max=200)], "clips values between black and white"),
        ([step("scale_linear", gain=[1, 2, 3])], "differs between channels"),
        ([step("scale_linear", gain=-1.0)], "not above zero"),
        ([step("scale_linear", gain=10**400)], "must be a number"),
        ([step("scale_linear", gain=float("nan"))], "must be a number"),
        ([step("fixed_zero_mean_unit_variance", mean=1.0)], "std is 'None'"),
        ([UNIT, step("ensure_dtype", dtype="uint8")], "whole numbers"),
        ([step("ensure_dtype", dtype="bool")], "which no image has"),
        ([step("sigmoid")], "not supported"),
        ([step("custom", source="https://example.org/x.py")], "not supported"),
        (["a"], "list of steps"),
        ([{"id": "clip", "kwargs": [1]}], "mapping"),
    ],
)
def test_steps_that_two_numbers_do_not_hold_are_refused(steps: list, words: str) -> None:
    source = tensor(preprocessing=steps)
    with pytest.raises(ValueError, match=words):
        input_values(source, data_range(source))


def put(*keys: str | int, value: object) -> Callable[[dict], None]:
    def change(description: dict) -> None:
        place = description
        for key in keys[:-1]:
            place = place[key]  # type: ignore[index]
        place[keys[-1]] = value  # type: ignore[index]

    return change


def other_formats(*names: str) -> Callable[[dict], None]:
    return put("weights", value={name: {"source": f"weights.{name}"} for name in names})


SOURCE, SIZE = ("weights", "onnx", "source"), ("inputs", 0, "axes")
HOSTILE: dict[str, tuple[Callable[[dict], None], str]] = {
    "above": (put(*SOURCE, value="../outside.onnx"), "outside the folder"),
    "absolute": (put(*SOURCE, value="/etc/passwd"), "outside the folder"),
    "backslashes": (put(*SOURCE, value="..\\outside.onnx"), "outside the folder"),
    "link": (put(*SOURCE, value="link.onnx"), "outside the folder"),
    "url": (put(*SOURCE, value="https://example.org/weights.onnx"), "nothing is downloaded"),
    "file url": (put(*SOURCE, value="file:///etc/passwd"), "nothing is downloaded"),
    "drive": (put(*SOURCE, value="C:/weights.onnx"), "nothing is downloaded"),
    "missing": (put(*SOURCE, value="missing.onnx"), "not an .onnx file of the folder"),
    "folder": (put(*SOURCE, value="."), "not an .onnx file of the folder"),
    "pickle": (put(*SOURCE, value="weights.pkl"), "not an .onnx file of the folder"),
    "no name": (put(*SOURCE, value=["x"]), "source is missing"),
    "control": (put(*SOURCE, value="a\x1b[2J\n.onnx"), "source is missing"),
    "hash": (put("weights", "onnx", "sha256", value="0" * 64), "altered or truncated"),
    "no hash": (put("weights", "onnx", "sha256", value=None), "sha256 is missing"),
    "external": (put("weights", "onnx", "external_data", value={"source": "x.data"}), "never opened"),
    "state dict": (other_formats("pytorch_state_dict"), "pytorch_state_dict; only onnx"),
    "torchscript": (other_formats("torchscript", "keras_hdf5"), "keras_hdf5, torchscript; only onnx"),
    "no weights": (put("weights", value={}), "no weights; only onnx"),
    "odd weights": (put("weights", value=[1]), "must be a mapping"),
    "dataset": (put("type", value="dataset"), "it must be model"),
    "old": (put("format_version", value="0.4.10"), "0.5 is read"),
    "new": (put("format_version", value=1.5), "0.5 is read"),
    "run mode": (put("run_mode", value={"name": "x"}), "run_mode"),
    "two inputs": (put("inputs", value=[{}, {}]), "2 tensors"),
    "no outputs": (put("outputs", value=None), "0 tensors"),
    "no axes": (put(*SIZE, value="bcyx"), "not a list of axes"),
    "odd axes": (put(*SIZE, value=[{"type": "space", "id": "z"}] * 9), "they must be batch"),
    "transposed": (put(*SIZE, value=[*axes(64)[:2], *axes(64)[:1:-1]]), "channel, x, y; they must be"),
    "huge": (put(*SIZE, value=axes(10**12)), "must be from 1 to 8192 px"),
    "huge steps": (put(*SIZE, value=axes({"min": 1, "step": 10**9})), "must be from 1 to 8192 px"),
    "no step": (put(*SIZE, value=axes({"min": 1, "step": 0})), "must be from 1 to 8192 px"),
    "negative": (put(*SIZE, value=axes(-64)), "must be from 1 to 8192 px"),
    "a text": (put(*SIZE, value=axes("64")), "must be from 1 to 8192 px"),
    "not square": (put(*SIZE, 2, "size", value=64), "must be square"),
    "large halo": (put("outputs", 0, "axes", value=axes(512, halo=200)), "at most a quarter"),
    "odd halo": (put("outputs", 0, "axes", value=axes(512, halo=[1])), "halo of an axis"),
    "two halos": (put("outputs", 0, "axes", 2, "halo", value=1), "different halos"),
    "scale": (put("inputs", 0, "axes", 2, "scale", value=0.25), "must have the same"),
    "odd scale": (put("inputs", 0, "axes", 2, "scale", value=float("inf")), "must be a number"),
    "four colours": (put("inputs", 0, "axes", 1, "channel_names", value=list("rgba")), "three colours"),
    "two orders": (put("outputs", 0, "axes", 1, "channel_names", value=list("bgr")), "one order"),
    "names": (put("outputs", 0, "axes", 1, "channel_names", value=["a,b", "c"]), "neither comma"),
    "no names": (put("inputs", 0, "axes", 1, "channel_names", value="c{i}"), "list of names"),
    "config": (put("config", value={"wsi_stain": [1]}), "must be a mapping"),
    "multiple": (put("config", value={"wsi_stain": {"multiple": -1}}), "must be from 1 to 8192 px"),
    "range": (put("inputs", 0, "data", value={"type": "float32", "range": [1, 0]}), "below the second"),
}


def refusal(folder: Path) -> str:
    """The sentence with which a folder is refused."""
    with pytest.raises(BundleError) as failure:
        read_folder(folder)
    sentence = str(failure.value)
    assert sentence.isprintable(), sentence
    assert str(folder) in sentence
    assert len(sentence) < 600
    return sentence


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    change, words = HOSTILE[name]
    (tmp_path / "outside.onnx").write_bytes(b"x")
    folder = foreign(tmp_path / "f", change)
    (folder / "weights.pkl").write_bytes(b"x")
    (folder / "link.onnx").symlink_to(tmp_path / "outside.onnx")
    before = sorted(tmp_path.rglob("*"))
    assert re.search(re.escape(words), refusal(folder))
    assert sorted(tmp_path.rglob("*")) == before


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 30)]
    return "\n".join([*lines, "type: *a29"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(), "values"),
        ("type: &a [*a]", "values"),
        ("[" * 5000, "not valid YAML"),
        ("x: 2026-99-99", "not valid YAML"),
        ("!!python/object/apply:os.system ['touch was-here']", "not valid YAML"),
        ("- a", "must be a mapping"),
        ("", "must be a mapping"),
        ("base: ../other.yaml", "it must be model"),
        ("x: " + "y" * (1 << 20), "more than 1024 KiB"),
        (b"\xff\xfe", "not valid YAML"),
    ],
)
def test_a_hostile_text_is_refused_in_one_sentence(tmp_path: Path, text: str | bytes, words: str) -> None:
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(DESCRIPTION))
    folder = foreign(tmp_path / "f")
    (folder / "rdf.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refusal(folder)
    assert not Path("was-here").exists()


def test_a_description_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "f")
    os.replace(folder / "rdf.yaml", tmp_path / "rdf.yaml")
    (folder / "rdf.yaml").symlink_to(tmp_path / "rdf.yaml")
    assert "link to a file outside" in refusal(folder)


def test_a_hostile_graph_is_refused_behind_its_right_hash(tmp_path: Path) -> None:
    resource = read_folder(foreign(tmp_path / "f", graph=b"import os; os.system('true')"))
    with pytest.raises(WsiStainError, match=r"not an ONNX|no graph"):
        import_model(resource.weights, tmp_path / "out", settings({"stain": "x", "tile": 64}, None, resource.facts))
    assert not (tmp_path / "out").exists()
