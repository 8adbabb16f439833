"""The doctor: what is broken is a FAIL with its fix, and what is whole passes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from builders import samples
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.doctor import bundles, devices, examine, machine, readers, storage
from wsi_stain.files.full_disk import gib
from wsi_stain.model.bundle import IdentityGenerator, shipped


def levels(findings) -> dict[str, str]:
    return {finding.subject: finding.level for finding in findings}


@pytest.fixture
def copies(tmp_path, monkeypatch) -> Path:
    """The built-in slides, which may be broken."""
    folder = tmp_path / "samples"
    shutil.copytree(readers.SAMPLES, folder)
    monkeypatch.setattr(readers, "SAMPLES", folder)
    return folder


def test_every_reader_opens_its_built_in_slide():
    assert set(levels(readers.check_readers()).items()) == {
        (f"reader {name}", "PASS")
        for name in ("image", "leica", "openslide", "pylibCZIrw", "tifffile", "wsidicom", "zarr")
    }


def test_the_built_in_slides_are_those_that_the_builders_write(tmp_path):
    samples.write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in readers.SAMPLES.iterdir()}
    for name in ("leica.scn", "pylibCZIrw.czi"):  # others hold identifiers or dates
        assert (tmp_path / name).read_bytes() == (readers.SAMPLES / name).read_bytes()


def test_a_reader_that_fails_or_shows_another_picture_is_a_failure_with_a_fix(copies):
    (copies / "leica.scn").write_bytes((copies / "leica.scn").read_bytes()[:2000])
    shutil.copy(copies / "bundle-he2cam52-small.png", copies / "image.png")
    findings = {finding.subject: finding for finding in readers.check_readers()}
    assert findings["reader leica"].level == "FAIL"
    assert "cannot be read" in findings["reader leica"].detail
    assert "differ by" in findings["reader tifffile"].detail
    assert all(finding.fix for finding in findings.values() if finding.level == "FAIL")


def test_a_missing_extra_is_a_warning(copies, monkeypatch):
    monkeypatch.setitem(sys.modules, "pylibCZIrw", None)
    finding = next(f for f in readers.check_readers() if f.subject == "reader pylibCZIrw")
    assert (finding.level, finding.fix) == ("WARN", "pip install 'wsi-stain[czi]' if you have such slides")


def test_a_device_that_computes_wrongly_is_a_failure(monkeypatch):
    assert levels(devices.check_devices())["device cpu"] == "PASS"
    import torch

    real = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *a: real(*a) + 0.1)
    finding = next(iter(devices.check_devices()))
    assert finding.level == "FAIL"
    assert "off by 0.1" in finding.detail


def test_every_shipped_bundle_is_compared_with_the_tile_that_it_stained():
    for name in shipped():
        assert name == "identity" or (readers.SAMPLES / f"bundle-{name}.png").is_file(), "python -m builders.samples"
    assert set(levels(bundles.check_bundles()).values()) == {"PASS"}


def test_a_bundle_that_stains_another_tile_is_a_failure(monkeypatch):
    monkeypatch.setattr(bundles, "check", lambda name, tiles: [])
    monkeypatch.setattr(bundles.Bundle, "generator", lambda *_, **__: IdentityGenerator())
    assert levels(bundles.check_bundles())["model he2cam52-small"] == "FAIL"
    monkeypatch.setattr(bundles, "check", lambda name, tiles: ["altered"])
    assert levels(bundles.check_bundles())["model he2cam52-small"] == "FAIL"


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    findings = list(storage.check_folder("x", tmp_path))
    assert [f.subject for f in findings] == ["x: space", "x: speed", "x: locks", "x: renames"]
    assert levels(findings)["x: locks"] == levels(findings)["x: renames"] == "PASS"
    assert list(tmp_path.iterdir()) == []


def test_a_full_slow_or_read_only_folder_is_told_with_what_to_do(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(storage, "SLOW_BYTES_PER_S", 1e15)
    findings = {f.subject: f for f in storage.check_folder("x", tmp_path)}
    assert findings["x: space"].level == "FAIL"
    assert findings["x: speed"].level == "WARN"
    assert findings["x: space"].fix
    assert findings["x: speed"].fix

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage.tempfile, "TemporaryDirectory", refused)
    assert levels(storage.check_folder("x", tmp_path))["x: files"] == "FAIL"


def test_a_file_system_without_exclusive_creation_or_renames_is_a_failure(tmp_path, monkeypatch):
    import contextlib

    monkeypatch.setattr(storage, "locked", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(storage, "atomic_write", lambda path, data: path.with_suffix(".part").write_bytes(data))
    assert storage._locks("x", tmp_path).level == "FAIL"
    (tmp_path / "replaced").write_bytes(b"old")
    assert storage._renames("x", tmp_path).level == "FAIL"


def test_little_memory_few_threads_and_few_files_are_told(monkeypatch):
    import resource

    import torch

    memory = psutil.virtual_memory()._replace(available=2 << 30)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)
    (finding,) = machine.check_memory()
    assert (finding.level, gib(2 << 30) in finding.detail) == ("WARN", True)
    monkeypatch.setattr(machine, "processors", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert levels(machine.check_threads()) == {"threads": "WARN"}
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert levels(machine.check_open_files()) == {"open files": "WARN"}


@pytest.mark.parametrize(
    ("script", "level", "words"),
    [
        ({}, "PASS", "not installed"),
        ({"sbatch": 0}, "WARN", "squeue"),
        (dict.fromkeys(machine.SLURM, 1), "WARN", "answer"),
    ],
)
def test_slurm_is_needed_only_where_it_is(tmp_path, monkeypatch, script, level, words):
    for name, code in script.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = machine.check_slurm()
    assert finding.level == level
    assert words in finding.detail


def test_the_command_prints_lines_or_json_and_its_code_tells_a_failure(tmp_path, monkeypatch):
    def broken():
        raise ZeroDivisionError("1/0")

    monkeypatch.setattr(examine, "check_readers", broken)
    monkeypatch.setattr(examine, "check_bundles", lambda: iter(()))
    result = CliRunner().invoke(group, ["doctor", "--folder", str(tmp_path)], standalone_mode=False)
    assert result.return_value == 1, result.output
    assert "FAIL  readers                    ZeroDivisionError: 1/0\n" in result.output
    result = CliRunner().invoke(group, ["doctor", "--folder", str(tmp_path), "--json"], standalone_mode=False)
    content = json.loads(result.stdout)
    assert content["ok"] is False
    assert [f["level"] for f in content["findings"] if f["subject"] == "readers"] == ["FAIL"]
    monkeypatch.setattr(examine, "check_readers", lambda: iter(()))
    result = CliRunner().invoke(group, ["doctor", "--folder", str(tmp_path), "--json"], standalone_mode=False)
    assert json.loads(result.stdout)["ok"] is True
    assert result.return_value == 0


@pytest.mark.slow
def test_the_whole_examination_of_this_installation_takes_seconds(tmp_path):
    command = [sys.executable, "-m", "wsi_stain", "doctor", "--folder", str(tmp_path)]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 60
    assert np.all([line[:4] in ("PASS", "WARN", "    ") for line in done.stdout.splitlines()[:-1]])
