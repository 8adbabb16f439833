"""Records appear whole, and memory is that of this process alone."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import wsi_stain
from wsi_stain.files import record

ROOT = Path(__file__).parents[2]


def test_what_is_written_is_read_and_nothing_else_lies_about(tmp_path: Path) -> None:
    path = record.path_of(tmp_path / "x.ome.tiff")
    record.write(path, {"µm": 1.5, "boxes": [[0, 1]]})
    assert record.read(path) == {"µm": 1.5, "boxes": [[0, 1]]}
    assert [p.name for p in tmp_path.iterdir()] == ["x.ome.tiff.run.json"]


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_record_that_cannot_be_read_is_no_record(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    assert record.read(path) == {}


def test_a_path_that_is_not_utf_8_is_written_and_read(tmp_path: Path) -> None:
    content = {"slide": b"Pr\xe4parat.svs".decode("utf-8", "surrogateescape"), "as it is": "Präparat µm"}
    record.write(tmp_path / "r.json", content)
    assert record.read(tmp_path / "r.json") == content
    assert "Präparat µm" in (tmp_path / "r.json").read_text(encoding="utf-8")


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    record.write(path, {"a": 1})
    with pytest.raises(TypeError):
        record.write(path, {"a": object()})
    assert record.read(path) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_peak_memory_sees_what_was_held_and_freed_and_not_the_parent_s() -> None:
    code = (
        "import numpy as np; from wsi_stain.files import record; "
        "np.ones({n} << 17).sum(); print(record.peak_memory_bytes())"
    )
    ballast = np.ones(300 << 17)  # 300 MiB in this process
    small, large = (int(subprocess.check_output([sys.executable, "-c", code.format(n=n)], text=True)) for n in (1, 200))
    assert ballast.size
    assert small < 200 << 20
    assert 190 << 20 < large - small < 230 << 20


def test_versions_name_everything_that_can_change_pixels_and_load_nothing() -> None:
    code = (
        "import json, sys; from wsi_stain.files import record; "
        "print(json.dumps(record.versions())); print('torch' in sys.modules)"
    )
    lines = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    versions = json.loads(lines[0])
    assert lines[1] == "False"
    assert versions["wsi-stain"] == wsi_stain.__version__
    needed = {"numpy", "scipy", "scikit-image", "pillow", "opencv-python-headless", "imagecodecs", "tifffile", "torch"}
    assert needed | {"openslide-python", "openslide-bin", "zarr", "safetensors"} <= set(versions)
    assert all(versions[name] == metadata.version(name) for name in needed)


def test_every_dependency_that_touches_pixels_is_recorded() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split("[<>=]", name)[0].lower() for name in project["dependencies"]}
    others = {"click", "distributed", "jinja2", "matplotlib", "psutil", "pyyaml", "rich", "setuptools", "tensorboard"}
    others.add("tornado")  # it sends tiles as they are
    assert names - others <= {name.lower() for name in record.PACKAGES}


def test_a_changed_package_is_told_once_and_all_versions_are_kept(tmp_path: Path, monkeypatch, caplog) -> None:
    path = tmp_path / "versions.json"
    first = {"python": "3.11.1", "numpy": "2.3.1", "pillow": "12.0.0"}
    second = {"python": "3.12.0", "numpy": "2.4.6", "scipy": "1.17.1", "pillow": "12.0.0"}
    monkeypatch.setattr(record, "versions", lambda: first)
    assert record.note_versions(path) == [first]
    assert record.note_versions(path) == [first]
    assert caplog.text == ""
    monkeypatch.setattr(record, "versions", lambda: second)
    for _ in range(2):
        assert record.note_versions(path) == [first, second]
    notice = f"{tmp_path} was begun with other versions (numpy 2.3.1 → 2.4.6, scipy not installed → 1.17.1)"
    assert [message.partition(";")[0] for message in caplog.messages] == [notice]
