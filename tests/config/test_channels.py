import pytest

from wsi_stain.config.channels import Channel, check_channels, parse
from wsi_stain.config.loader import load
from wsi_stain.config.model import BundleConfig, BundleOutput
from wsi_stain.errors import ConfigError


def test_names_get_colours_and_given_ones_are_kept() -> None:
    channels = parse("DAPI, CD3=00FF7f,CD8 = #102030,Ki-67")
    assert [c.name for c in channels] == ["DAPI", "CD3", "CD8", "Ki-67"]
    assert [c.hex for c in channels[:3]] == ["0000FF", "00FF7F", "102030"]
    assert max(channels[3].colour) == 255


def test_no_two_of_many_channels_look_alike() -> None:
    colours = [channel.colour for channel in parse(",".join(f"m{n}" for n in range(18)))]
    near = min(sum(abs(a - b) for a, b in zip(x, y, strict=True)) for x in colours for y in colours if x is not y)
    assert near > 30


@pytest.mark.parametrize(
    ("text", "message"),
    [("A=red", "six hexadecimal digits"), ("A,,B", "not a valid channel name"), ("A=12345", "six hexadecimal digits")],
)
def test_what_is_no_channel_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_names_differ_and_are_not_too_many() -> None:
    with pytest.raises(ConfigError, match="two are named 'A'"):
        check_channels(parse("A,B,A"))
    with pytest.raises(ConfigError, match="at most 64"):
        check_channels(parse(",".join(f"m{n}" for n in range(65))))


def test_background_and_channels_fit_each_other_and_the_network() -> None:
    two = (Channel("A", (255, 0, 0)), Channel("B", (0, 255, 0)))
    assert BundleOutput("panel", (0, 3), two).background == (0, 3)
    with pytest.raises(ConfigError, match="one for each of the 2 channels"):
        BundleOutput("panel", (0, 0, 0), two)
    with pytest.raises(ConfigError, match="3 \\(R, G, B\\)"):
        BundleOutput("HER2", (0, 0))
    with pytest.raises(ConfigError, match="only colours can be measured"):
        _ = BundleOutput("panel", (0, 3), two).background_colour
    spec = {
        **{"name": "x", "version": "1", "generator": {"kind": "imported"}, "input": {"stain": "H&E", "mpp": 1.0}},
        "output": {"stain": "panel", "background": [0], "channels": [{"name": "A", "colour": [1, 2, 3]}]},
        "network": {
            **{"kind": "onnx", "values_in": [0, 1], "values_out": [0, 1], "colours": "rgb", "multiple": 1},
            **{"norm": "none", "outputs": 2, "fluorescence": True},
        },
    }
    with pytest.raises(ConfigError, match="names 1 channels, but the network has 2"):
        load(BundleConfig, spec)
