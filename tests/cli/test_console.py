"""What is printed survives every encoding of the console."""

import io
import subprocess
import sys

import pytest

from wsi_stain.cli.console import use_any_encoding


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"2220 x 2967 at 0.5 um/px\\u4e2d\xff"),
        ("cp1252", b"2220 \xd7 2967 at 0.5 \xb5m/px\\u4e2d\xff"),
        ("utf-8", "2220 × 2967 at 0.5 µm/px中".encode() + b"\xff"),
    ],
)
def test_a_sentence_in_any_encoding(monkeypatch, encoding, expected):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    use_any_encoding()
    sys.stdout.write("2220 × 2967 at 0.5 µm/px中\udcff")
    sys.stdout.flush()
    assert raw.getvalue() == expected


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
def test_a_command_in_a_foreign_console(monkeypatch, environment):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    done = subprocess.run([sys.executable, "-m", "wsi_stain", "--help"], capture_output=True, timeout=300)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
