"""Fluorescence channels of an output: their names, and the colours in which viewers show them."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass

from wsi_stain.config.ranges import Byte, check_ranges
from wsi_stain.errors import ConfigError

MOST_CHANNELS = 64
NUCLEI = {"dapi", "hoechst", "dna", "draq5", "nuclei"}
"""Names that are shown in blue, as microscopists expect."""
GOLDEN_TURN = 0.6180339887
"""Share of the circle of hues between two channels: any number of them stay apart (Vogel, 1979)."""
_COLOUR = re.compile("#?([0-9a-fA-F]{6})")


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel."""

    name: str
    colour: tuple[Byte, Byte, Byte]
    """(R, G, B) of its brightest pixels."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.name.strip() or not self.name.isprintable():
            raise ConfigError(f"channels: {self.name!r} is not a valid channel name")

    @property
    def hex(self) -> str:
        """The colour as RRGGBB."""
        return bytes(self.colour).hex().upper()


def check_channels(channels: Sequence[Channel]) -> None:
    """Check that there are not too many channels, and that no two have one name.

    Raises:
        ConfigError: they cannot be used.
    """
    names = [channel.name for channel in channels]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ConfigError(f"channels: two are named {double!r}; names must differ")
    if len(names) > MOST_CHANNELS:
        raise ConfigError(f"channels: {len(names)} are given; at most {MOST_CHANNELS} are supported")


def check_background(background: Sequence[int], channels: Sequence[Channel], key: str) -> None:
    """Check that a background has one value for each channel, or is a colour.

    Raises:
        ConfigError: it has another number of values.
    """
    expected = len(channels) or 3
    if len(background) != expected:
        rule = f"one for each of the {expected} channels" if channels else "3 (R, G, B)"
        raise ConfigError(f"{key} has {len(background)} values: it must have {rule}")


def parse(text: str) -> tuple[Channel, ...]:
    """The channels in a text such as `DAPI,CD3=00FF00`; those without a colour get one.

    Raises:
        ConfigError: a colour is not RRGGBB.
    """
    channels: list[Channel] = []
    for number, part in enumerate(text.split(",")):
        name, equals, colour = part.strip().rpartition("=")
        name = name if equals else part.strip()
        match = _COLOUR.fullmatch(colour.strip()) if equals else None
        if equals and match is None:
            raise ConfigError(f"--channels {part!r}: a colour is six hexadecimal digits, for example {name}=00FF00")
        red, green, blue = bytes.fromhex(match[1]) if match else _default(name, number)
        channels.append(Channel(name.strip(), (red, green, blue)))
    return tuple(channels)


def _default(name: str, number: int) -> tuple[int, int, int]:
    """Blue for nuclei, else a hue by number."""
    if name.lower() in NUCLEI:
        return 0, 0, 255
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb((1 / 3 + number * GOLDEN_TURN) % 1, 1, 1))
    return red, green, blue
