"""Settings: strict, typed, and the same after a round trip."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wsi_stain.config.convert import ConvertConfig, GridConfig
from wsi_stain.config.loader import dump, load
from wsi_stain.config.model import BundleConfig
from wsi_stain.config.train import TrainConfig
from wsi_stain.errors import ConfigError

BUNDLE = {
    "name": "x",
    "version": "1.0.0",
    "generator": {"kind": "identity"},
    "input": {"stain": "H&E", "mpp": 0.5},
    "output": {"stain": "HER2", "glass": [240, 241, 242]},
}


@given(
    tile=st.none() | st.integers(1, 4096),
    block=st.sampled_from([512, 1024, 4096]),
    quality=st.integers(1, 100),
    compat=st.booleans(),
    share=st.floats(0, 1),
)
def test_what_is_dumped_loads_as_the_same(
    tile: int | None, block: int, quality: int, compat: bool, share: float
) -> None:
    config = load(
        ConvertConfig,
        {
            "grid": {"tile": tile, "block": block},
            "output": {"quality": quality, "compat_openslide": compat},
            "max_unreadable": share,
        },
    )
    assert config.grid == GridConfig(tile=tile, block=block)
    assert load(ConvertConfig, yaml.safe_load(yaml.safe_dump(dump(config)))) == config


def test_lists_become_tuples_and_numbers_choices() -> None:
    assert load(BundleConfig, BUNDLE).output.glass == (240, 241, 242)
    assert load(ConvertConfig, {"output": {"subsampling": 422}}).output.subsampling == "422"
    assert load(ConvertConfig, {"max_unreadable": 1}).max_unreadable == 1.0


def test_overrides_win_over_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("grid: {tile: 256, overlap: 32}\n")
    config = load(ConvertConfig, file, ["grid.overlap=64", "output.compression=deflate"])
    assert (config.grid.tile, config.grid.overlap, config.output.compression) == (256, 64, "deflate")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"grid": {"overlp": 1}}, r"unknown key 'grid\.overlp'; did you mean 'grid\.overlap'\?"),
        ({"zebra": 1}, "unknown key 'zebra'; known keys: grid"),
        ({"grid": {"block": 1000}}, "grid.block is 1000: it must be 512 times a power of two"),
        ({"grid": {"tile": "big"}}, "grid.tile is 'big': it must be a whole number"),
        ({"grid": {"tile": True}}, "grid.tile is True: it must be a whole number"),
        ({"grid": 3}, "grid is 3: it must be a section"),
        ({"output": {"compression": "zstd"}}, "output.compression is 'zstd': choose one of jpeg, deflate"),
        ({"output": {"subsampling": "444"}}, "choose one of 420, 422, rgb"),
        ({"output": {"quality": 0}}, "output.quality is 0: it must be between 1 and 100"),
    ],
)
def test_bad_settings_are_refused_with_key_value_and_rule(data: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load(ConvertConfig, data)


def test_missing_keys_and_wrong_lengths_are_named() -> None:
    with pytest.raises(ConfigError, match="the key 'name' is missing"):
        load(BundleConfig, {k: v for k, v in BUNDLE.items() if k != "name"})
    with pytest.raises(ConfigError, match=r"output.glass has 2 values: it must have 3"):
        load(BundleConfig, BUNDLE | {"output": {"stain": "x", "glass": [1, 2]}})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a: [", "is not valid YAML"), ("- 1", "holds a list"), (None, "No such file")],
)
def test_bad_files_are_named(tmp_path: Path, text: str | None, sentence: str) -> None:
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load(ConvertConfig, file)


def test_bad_overrides_are_named() -> None:
    with pytest.raises(ConfigError, match="write key=value"):
        load(ConvertConfig, None, ["grid.overlap"])
    with pytest.raises(ConfigError, match="batch is a value, not a section"):
        load(ConvertConfig, {"batch": 2}, ["batch.size=3"])


def test_widths_and_depths_that_the_network_cannot_have_are_refused() -> None:
    train = {"pairs": "p", "run": "r", "input": {"stain": "a", "mpp": 1.0}, "output": {"stain": "b"}}
    with pytest.raises(ConfigError, match="at least 4"):
        load(TrainConfig, train, ["generator.blocks=2"])
    with pytest.raises(ConfigError, match="multiple of 4"):
        load(TrainConfig, train, ["generator.channels=6"])


def test_a_file_may_differ_from_another(tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text("grid: {tile: 256, overlap: 64}\nbatch: 2\n")
    (tmp_path / "near.yaml").write_text("base: far.yaml\ngrid: {overlap: 32}\n")
    (tmp_path / "nearest.yaml").write_text("base: near.yaml\nbatch: 7\n")
    found = load(ConvertConfig, tmp_path / "nearest.yaml", ["grid.block=1024"])
    assert found == load(ConvertConfig, {"grid": {"tile": 256, "overlap": 32, "block": 1024}, "batch": 7})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: me.yaml", "base is 'me.yaml'"),
        ("base: 3", "base is 3"),
        ("base: no.yaml", "cannot read the configuration .*no.yaml"),
    ],
)
def test_a_base_that_leads_nowhere_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "me.yaml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load(ConvertConfig, tmp_path / "me.yaml")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batch=0", "batch is 0: it must be at least 1"),
        ("cache_mb=-1", "cache_mb is -1"),
        ("max_unreadable=-1", "max_unreadable is -1.*between 0 and 1"),
        ("max_unreadable=1.5", "max_unreadable is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(ConvertConfig, None, [setting])
    assert load(ConvertConfig, None, ["max_unreadable=0", "cache_mb=0", "batch=1"])
