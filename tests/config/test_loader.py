"""Settings: strict, typed, and the same after a round trip."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wsi_stain.cohort.request import CohortConfig
from wsi_stain.config.cluster import ClusterConfig
from wsi_stain.config.convert import ConvertConfig, GridConfig
from wsi_stain.config.loader import dump, load
from wsi_stain.config.model import BundleConfig, BundleOutput, GeneratorConfig
from wsi_stain.config.ranges import Range, check_ranges, hints, range_of, without_none
from wsi_stain.config.train import LossConfig, TrainConfig
from wsi_stain.errors import ConfigError

BUNDLE = {
    "name": "x",
    "version": "1.0.0",
    "generator": {"kind": "identity"},
    "input": {"stain": "H&E", "mpp": 0.5},
    "output": {"stain": "HER2", "background": [240, 241, 242]},
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
    assert load(BundleConfig, BUNDLE).output.background == (240, 241, 242)
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
    with pytest.raises(ConfigError, match=r"output.background has 2 values: it must have 3"):
        load(BundleConfig, BUNDLE | {"output": {"stain": "x", "background": [1, 2]}})


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


def test_a_file_may_differ_from_another(tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text("grid: {tile: 256, overlap: 64}\nbatch: 2\n")
    (tmp_path / "near.yaml").write_text("base: far.yaml\ngrid: {overlap: 32}\n")
    (tmp_path / "nearest.yaml").write_text("base: near.yaml\nbatch: 7\n")
    actual = load(ConvertConfig, tmp_path / "nearest.yaml", ["grid.block=1024"])
    assert actual == load(ConvertConfig, {"grid": {"tile": 256, "overlap": 32, "block": 1024}, "batch": 7})


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


TRAIN = {"pairs": "p", "run": "r", "input": {"stain": "a", "mpp": 1.0}, "output": {"stain": "b"}}
BASES = {ConvertConfig: {}, ClusterConfig: {}, CohortConfig: {}, BundleConfig: BUNDLE, TrainConfig: TRAIN}
"""Every kind of configuration, with the keys that it requires."""


def numbers(cls: type, prefix: str = "") -> list[tuple[str, Any, int | None]]:
    """Every numeric setting of a configuration: its key, its type, and its place in a list."""
    actual = []
    for name, hint in hints(cls).items():
        key, hint = prefix + name.removesuffix("_"), without_none(hint)
        if dataclasses.is_dataclass(hint):
            actual += numbers(hint, key + ".")  # type: ignore[arg-type]
        elif typing.get_origin(hint) is tuple:
            actual += [(key, part, i) for i, part in enumerate(typing.get_args(hint)) if part is not Ellipsis]
        else:
            actual.append((key, hint, None))
    return [(key, hint, i) for key, hint, i in actual if hint in (int, float) or range_of(hint)]


LENGTHS = {"workers": 2, "output.background": 3, "network.values_in": 2, "network.values_out": 2}


NETWORK = {"kind": "onnx", "values_in": [0, 1], "values_out": [0, 1], "colours": "rgb", "multiple": 1, "norm": "none"}
FACTS = {"reach": 1, "tile_statistics": False, "agreement_db": 60.0, "seconds_per_tile": 1.0, "device": "cpu"}
SECTIONS = {"tile_tolerance": {"mean": 1.0, "p99": 1.0, "max": 1.0}, "network": NETWORK, "measured": FACTS}
"""Sections that are optional as a whole, with the keys that they require."""


def with_setting(cls: type, key: str, value: Any) -> dict[str, Any]:
    """A valid configuration except for one value."""
    data = yaml.safe_load(yaml.safe_dump(BASES[cls]))
    section, (*parents, last) = data, key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section |= SECTIONS.get(".".join(parents), {})
    section[last] = value
    return data


def outside(rule: Range) -> list[float]:
    """Numbers just outside a range."""
    lower = [rule.above] if rule.above is not None else [(rule.least or 0) - 1]
    return [*lower, *([rule.most + 1] if rule.most is not None else [])]


@pytest.mark.parametrize("cls", BASES)
def test_every_number_has_a_range_and_is_refused_outside_it(cls: type) -> None:
    checked = numbers(cls)
    assert checked
    for key, hint, place in checked:
        rule = range_of(hint)
        assert rule is not None, f"{key} has no range"
        for number in outside(rule):
            value = number if place is None else [number if i == place else 1 for i in range(LENGTHS[key])]
            data = with_setting(cls, key, value)
            with pytest.raises(ConfigError) as error:
                load(cls, data)
            where, text = key if place is None else f"{key}[{place}]", f"{number:g}" if number < 1e9 else str(number)
            assert str(error.value) == f"{where} is {text}: it must be {rule}"


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_that_are_not_finite_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"loss\.l1 is (nan|inf|-inf): it must be finite and at least 0"):
        load(TrainConfig, TRAIN, [f"loss.l1={value}"])


def test_ranges_hold_for_settings_that_are_made_in_python() -> None:
    for make in (
        lambda: ConvertConfig(max_unreadable=-1),
        lambda: GridConfig(tile=0),
        lambda: GeneratorConfig(blocks=3),
        lambda: LossConfig(alpha=float("nan")),
        lambda: CohortConfig(retries=-1),
        lambda: ClusterConfig(workers=(0, 0)),
    ):
        with pytest.raises(ConfigError, match=r"^\w+(\[1\])? is \S+: it must be"):
            make()
    check_ranges(ConvertConfig(max_unreadable=1, batch=1, cache_mib=0))


@given(st.floats(allow_nan=True), st.floats(-5, 5), st.floats(-5, 5))
def test_a_range_contains_what_lies_between_its_bounds(value: float, low: float, high: float) -> None:
    assert (value in Range(low, high)) == (low <= value <= high)
    assert (value in Range(above=low)) == (low < value < float("inf"))
    assert (value in Range(low)) == (low <= value < float("inf"))


def test_a_message_names_the_file_only_for_what_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("batch: 0\ngrid: {overlp: 3}\n")
    with pytest.raises(ConfigError, match=rf"^{file}: batch is 0: it must be at least 1$"):
        load(ConvertConfig, file, ["grid={}"])
    with pytest.raises(ConfigError, match=rf"^{file}: unknown key 'grid.overlp'; did you mean 'grid.overlap'\?$"):
        load(ConvertConfig, file, ["batch=1"])
    with pytest.raises(ConfigError, match=r"^batch is -1: it must be at least 1$"):
        load(ConvertConfig, file, ["batch=-1", "grid={}"])
    with pytest.raises(ConfigError, match=r"^unknown key 'zebra'; known keys"):
        load(ConvertConfig, {"zebra": 1})
    file.write_text("name: x\n")
    with pytest.raises(ConfigError, match=rf"^{file}: the key 'version' is missing$"):
        load(BundleConfig, file)


def test_keys_of_earlier_versions_are_read_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, file = tmp_path / "base.yaml", tmp_path / "old.yaml"
    base.write_text("cache_mib: 1\ngrid: {tile: 256}\n")
    file.write_text("base: base.yaml\ncache_mb: 2\n")
    with caplog.at_level("WARNING"):
        assert [load(ConvertConfig, file).cache_mib for _ in range(2)] == [2, 2]
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: the key cache_mb is now called cache_mib; the old name is still read"
    ]
    assert load(ConvertConfig, file, ["cache_mb=3"]).cache_mib == 3
    assert load(BundleOutput, {"stain": "x", "glass": [1, 2, 3]}).background == (1, 2, 3)
