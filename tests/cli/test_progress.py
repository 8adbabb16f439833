"""What a waiting user reads."""

import sys
from dataclasses import replace

import pytest

from wsi_stain.cli.progress import shown, speed, time_left
from wsi_stain.conversion.engine import Progress

SHARES = {"read": 0.04, "wait": 0.44, "generate": 0.485, "write": 0.02}
HALF = Progress("stain", 5, 10, 50, 150, 25.0, {stage: 40 * share for stage, share in SHARES.items()}, SHARES, 0.97)


def test_speed_names_the_bottleneck() -> None:
    assert speed(HALF) == "2.0 tiles/s, reading 4%, device 97%"
    slow_disk = {"read": 0.62, "wait": 0.3, "generate": 0.05, "write": 0.03}
    assert speed(replace(HALF, shares=slow_disk, device_busy=0.1)) == "2.0 tiles/s, reading 62%, device 10%"
    large_output = {"read": 0.2, "generate": 0.05, "write": 0.7}
    assert speed(replace(HALF, shares=large_output)).endswith("encoding and writing 70%, device 97%")


def test_time_left_follows_from_the_tiles_of_this_run() -> None:
    assert time_left(HALF) == "50 s left"
    assert time_left(Progress("stain", 1, 9, 10, 1010, 20.0)) == "33 min left"


def test_nothing_is_claimed_before_the_first_tile_or_in_other_stages() -> None:
    assert speed(Progress("stain", 0, 10, 0, 150, 1.0)) == time_left(Progress("plan")) == ""


def test_without_a_terminal_each_stage_is_a_line_and_floods_are_held_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with shown() as show:
        show(Progress("plan"))
        for _ in range(100):
            show(HALF)
        show(Progress("assemble", 10, 10))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "reading the slide's hash and finding tissue",
        "staining: 5/10 blocks, 2.0 tiles/s, reading 4%, device 97%, 50 s left",
        "assembling the file: 10/10 blocks",
    ]


def test_on_a_terminal_a_bar_is_drawn_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shown() as show:
        show(HALF)
    out, err = capsys.readouterr()
    assert out == ""
    assert "staining" in err
    assert "50/150" in err
