"""Bundles of the Hub, from a cache made here: nothing is downloaded."""

import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.errors import BundleError, ConfigError
from wsi_stain.model import hub
from wsi_stain.model.bundle import DEFAULT, Bundle

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra [hub] is not installed")
constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in the layout of `huggingface_hub` with one bundle, offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "hub")
    store = tmp_path / "hub" / "models--lab--he2x"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(COMMIT)
    snapshot = store / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    bundle = Bundle.open(DEFAULT)
    for name in ("bundle.yaml", bundle.weights_path.name, "card.md"):
        shutil.copyfile(bundle.folder / name, snapshot / name)
    return snapshot


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_bundle_of_the_cache_is_used_offline(cache: Path, revision: str) -> None:
    pulled = hub.pull(f"hf:lab/he2x@{revision}")
    assert (pulled.commit, pulled.bundle.folder) == (COMMIT, cache)
    assert pulled.bundle.sha256 == Bundle.open(DEFAULT).sha256


def test_the_command_prints_the_folder_and_how_to_pin(cache: Path) -> None:
    done = CliRunner().invoke(group, ["models", "pull", "hf:lab/he2x@main"])
    assert done.stdout.strip() == str(cache)
    assert f"hf:lab/he2x@{COMMIT}" in done.stderr
    assert CliRunner().invoke(group, ["models", "pull", f"hf:lab/he2x@{COMMIT}"]).stderr == ""


def test_altered_weights_are_refused(cache: Path) -> None:
    weights = cache / "generator.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="do not match its hash"):
        hub.pull(f"hf:lab/he2x@{COMMIT}")


def test_what_is_not_in_the_cache_is_not_invented(cache: Path) -> None:
    for reference in (f"hf:lab/other@{COMMIT}", "hf:lab/he2x@v2", f"hf:lab/he2x@{COMMIT[::-1]}"):
        with pytest.raises(BundleError, match=r"bundle\.yaml of .* cannot be fetched"):
            hub.pull(reference)


def test_another_commit_than_the_pinned_one_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(cache / "bundle.yaml"))
    with pytest.raises(BundleError, match=f"answered with commit {COMMIT}"):
        hub.pull(f"hf:lab/he2x@{COMMIT[::-1]}")


def test_files_outside_the_repository_are_refused(cache: Path) -> None:
    spec = cache / "bundle.yaml"
    spec.write_text(spec.read_text().replace("generator.safetensors", "../../x.safetensors"))
    with pytest.raises(BundleError, match="not a file in the bundle's own folder"):
        hub.pull(f"hf:lab/he2x@{COMMIT}")


@pytest.mark.parametrize("reference", ["lab/he2x@main", "hf:lab/he2x", "hf:he2x@main", "hf:../x@main@main"])
def test_a_reference_has_owner_name_and_revision(reference: str) -> None:
    with pytest.raises(ConfigError, match="write hf:OWNER/NAME@REVISION"):
        hub.pull(reference)


def test_without_the_library_the_extra_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(BundleError, match=r"wsi-stain\[hub\]"):
        hub.pull(f"hf:lab/he2x@{COMMIT}")


def test_a_missing_extra_is_a_sentence(monkeypatch):
    for name in ("huggingface_hub", "platformdirs"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BundleError, match=r"install it with pip install 'wsi-stain\[hub\]'"):
        hub.pull("hf:a/b@c")
