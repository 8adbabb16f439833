"""Bundles as one file: packed reproducibly, and nothing but intact bundles is unpacked."""

import io
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders.conversions import digest
from builders.published import graph_of, node, serialized
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.errors import BundleError, WsiStainError
from wsi_stain.model.archive import pack_archive, unpack_archive
from wsi_stain.model.bundle import Bundle, sha256_of
from wsi_stain.model.importing import import_model, settings

GIVEN = {
    **{"mpp": 1.0, "stain": "HER2", "licence": "CC0-1.0", "values_in": [0, 1], "values_out": [0, 1], "colours": "rgb"},
    **{"tile": 64, "multiple": 1, "overlap": 16, "kind": "onnx"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    graph = graph_of(node("Conv", ["x", "k"], ["y"]), k=np.eye(3, dtype=np.float32)[..., None, None])
    (folder / "x.onnx").write_bytes(serialized(graph))
    import_model(folder / "x.onnx", folder / "he2x", settings(GIVEN))
    return folder / "he2x"


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_a_bundle_comes_back_unchanged(folder: Path, tmp_path: Path, ending: str) -> None:
    first, second = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    copy = shutil.copytree(folder, tmp_path / "he2x")
    (copy / "card.md").touch()  # another date
    pack_archive(folder, first)
    pack_archive(copy, second)
    assert first.read_bytes() == second.read_bytes()
    bundle = unpack_archive(first, tmp_path / "new")
    assert digest(tmp_path / "new") == digest(folder)
    assert bundle.sha256 == Bundle.open(folder).sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first.name, second.name, "he2x", "new"])


def test_the_commands_pack_and_unpack(folder: Path, tmp_path: Path) -> None:
    run = CliRunner()
    packed = run.invoke(group, ["models", "pack", str(folder), str(tmp_path / "x.zip")])
    assert packed.stdout.strip() == str(tmp_path / "x.zip")
    assert run.invoke(group, ["models", "unpack", str(tmp_path / "x.zip"), str(tmp_path / "x")]).exit_code == 0
    assert Bundle.open(tmp_path / "x").stain == "HER2"
    with pytest.raises(BundleError, match="packed bundle; unpack it first"):
        Bundle.open(tmp_path / "x.zip")


def test_nothing_is_overwritten_and_only_bundles_are_packed(folder: Path, tmp_path: Path) -> None:
    pack_archive(folder, tmp_path / "x.zip")
    with pytest.raises(BundleError, match="already exists"):
        pack_archive(folder, tmp_path / "x.zip")
    with pytest.raises(BundleError, match="already exists"):
        unpack_archive(tmp_path / "x.zip", folder)
    with pytest.raises(BundleError, match="built in"):
        pack_archive("identity", tmp_path / "y.zip")
    copy = shutil.copytree(folder, tmp_path / "he2x")
    (copy / "notes.pkl").write_bytes(b"")
    with pytest.raises(BundleError, match=r"holds notes\.pkl"):
        pack_archive(copy, tmp_path / "y.zip")


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_zip(path: Path, members: list[tuple[zipfile.ZipInfo | str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for info, data in members:
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def refused(archive: Path, folder: Path, words: str) -> None:
    """The archive is refused with these words, and nothing remains."""
    before = sorted(path for path in folder.rglob("*"))
    with pytest.raises(WsiStainError, match=words) as failure:
        unpack_archive(archive, folder / "target")
    assert "\n" not in str(failure.value)
    assert sorted(path for path in folder.rglob("*")) == before


OUTSIDE = ["../evil.md", "/evil.md", "a/../../evil.md", "a/b/evil.md", "..\\evil.md", "C:/evil.md", "C:evil.md"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_paths_outside_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    good = files_of(folder)
    refused(write_zip(tmp_path / "x.zip", [*good.items(), (name, b"x")]), tmp_path, "outside the bundle's folder")
    members = [(entry(key), data) for key, data in good.items()]
    refused(write_tar(tmp_path / "x.tar", [*members, (entry(name), b"x")]), tmp_path, "outside the bundle's folder")


def test_links_and_devices_are_refused(folder: Path, tmp_path: Path) -> None:
    good = files_of(folder)
    link = zipfile.ZipInfo("card2.md")
    link.external_attr = 0o120777 << 16
    refused(write_zip(tmp_path / "x.zip", [*good.items(), (link, b"/etc/passwd")]), tmp_path, "a link or a device")
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
    for kind in kinds:
        members = [(entry(key), data) for key, data in good.items()]
        link_ = entry("card2.md", kind, "/etc/passwd")
        refused(write_tar(tmp_path / "x.tar", [*members, (link_, b"")]), tmp_path, "a link or a device")


def test_bombs_are_refused_before_they_grow(folder: Path, tmp_path: Path) -> None:
    good = {**files_of(folder), "extra.txt": bytes(64 << 20)}
    bomb = write_zip(tmp_path / "x.zip", list(good.items()), zipfile.ZIP_DEFLATED)
    refused(bomb, tmp_path, r"grows to 67,108,864 bytes")
    many = [(f"{n}.txt", b"") for n in range(40)]
    refused(write_zip(tmp_path / "y.zip", [*files_of(folder).items(), *many]), tmp_path, "more than 32 files")
    data = bytearray(write_zip(tmp_path / "z.zip", list(files_of(folder).items())).read_bytes())
    name = data.rindex(b"card.md")  # in the directory at the end; its size is 22 bytes before the name
    data[name - 22 : name - 18] = (3).to_bytes(4, "little")
    (tmp_path / "z.zip").write_bytes(data)
    refused(tmp_path / "z.zip", tmp_path, "z.zip")


def test_pickles_are_refused_under_any_name(folder: Path, tmp_path: Path) -> None:
    good = files_of(folder)
    evil = pickle.dumps(Bomb(tmp_path / "executed"))
    refused(write_zip(tmp_path / "x.zip", [*good.items(), ("x.pkl", evil)]), tmp_path, "not a file of a bundle")
    refused(write_zip(tmp_path / "y.zip", [*good.items(), ("x.pth", evil)]), tmp_path, "not a file of a bundle")
    (tmp_path / "evil").write_bytes(evil)
    spec = yaml.safe_load(good["bundle.yaml"])
    spec["weights"] = {"file": "generator.safetensors", "sha256": sha256_of(tmp_path / "evil")}
    renamed = {"bundle.yaml": yaml.safe_dump(spec).encode(), "card.md": b"", "generator.safetensors": evil}
    refused(write_zip(tmp_path / "z.zip", list(renamed.items())), tmp_path, "is not safetensors")
    assert not (tmp_path / "executed").exists()


def test_what_is_no_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    good = files_of(folder)
    weights = next(name for name in good if name.endswith(".onnx"))
    refused(write_zip(tmp_path / "a.zip", [("card.md", b"")]), tmp_path, "has no bundle.yaml")
    refused(write_zip(tmp_path / "b.zip", [*good.items(), ("CARD.md", b"")]), tmp_path, "two files of one name")
    refused(
        write_zip(tmp_path / "c.zip", [(f"{n}/{k}", v) for n, (k, v) in enumerate(good.items())]), tmp_path, "folders"
    )
    altered = {**good, weights: good[weights][:-1] + b"\0"}
    refused(write_zip(tmp_path / "d.zip", list(altered.items())), tmp_path, "do not match its hash")
    (tmp_path / "e.tar").write_bytes(b"no archive")
    refused(tmp_path / "e.tar", tmp_path, r"not an intact \.zip or \.tar")
    whole = pack_archive(folder, tmp_path / "f.tar").read_bytes()
    (tmp_path / "f.tar").write_bytes(whole[: len(whole) // 3])
    refused(tmp_path / "f.tar", tmp_path, "f.tar")


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_a_changed_archive_is_refused_or_gives_an_intact_bundle(folder: Path, tmp_path: Path, ending: str) -> None:
    whole = pack_archive(folder, tmp_path / f"x{ending}").read_bytes()
    random = np.random.default_rng(0)
    seen = {"refused": 0, "intact": 0}
    for n in range(150):
        data = bytearray(whole)
        for at in random.integers(0, len(data), 1 + n % 3):
            data[at] = random.integers(0, 256)
        (tmp_path / f"y{ending}").write_bytes(data)
        try:
            bundle = unpack_archive(tmp_path / f"y{ending}", tmp_path / "target")
        except WsiStainError:
            seen["refused"] += 1
        else:
            seen["intact"] += 1
            assert bundle.sha256 == sha256_of(bundle.weights_path)
            shutil.rmtree(tmp_path / "target")
        assert {path.name for path in tmp_path.iterdir()} == {f"x{ending}", f"y{ending}"}
    assert min(seen.values()) > 3, seen
