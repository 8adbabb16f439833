"""Ranges of numeric settings, stated in the types of their fields: `batch: Annotated[int, Range(1)]`.

The loader checks them with the key of the setting, and every dataclass of settings checks them again when it is
constructed in Python.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin

from wsi_stain.errors import ConfigError

MIN_MPP, MAX_MPP = 0.05, 10.0
"""µm per px: scanners work at 0.1–1, thumbnails below 10; a value outside is a wrong unit (some files hold 1000)."""


@dataclass(frozen=True, slots=True)
class Range:
    """The finite numbers between two bounds.

    >>> 0 in Range(1), 1 in Range(1), 0.0 in Range(above=0)
    (False, True, False)
    >>> str(Range(1)), str(Range(0, 1)), str(Range(above=0))
    ('at least 1', 'between 0 and 1', 'above 0')
    """

    least: float | None = None
    """Smallest number; `None` sets no limit."""
    most: float | None = None
    """Largest number; `None` sets no limit."""
    above: float | None = None
    """Excluded lower bound, instead of `least`."""

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
        )

    def __str__(self) -> str:
        lower = f"above {self.above:g}" if self.above is not None else f"at least {self.least or 0:g}"
        if self.most is None:
            return lower
        return f"between {self.least:g} and {self.most:g}" if self.above is None else f"{lower}, at most {self.most:g}"


Count = Annotated[int, Range(1)]
"""A number of things that must exist."""
NonNegativeInt = Annotated[int, Range(0)]
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(0, 1)]
Byte = Annotated[int, Range(0, 255)]
"""A colour channel."""
Mpp = Annotated[float, Range(MIN_MPP, MAX_MPP)]
"""µm per px."""


def check(value: Any, rule: Range, key: str) -> None:
    """Raise a ConfigError with key, value and range if the number is outside the range."""
    if value not in rule:
        number = f"{value:g}" if isinstance(value, float) else value
        raise ConfigError(f"{key} is {number}: it must be {rule if math.isfinite(value) else f'finite and {rule}'}")


def check_ranges(settings: Any) -> None:
    """Check every numeric field of a dataclass against the range in its type.

    Raises:
        ConfigError: a number is outside its range.
    """
    for name, hint in hints(type(settings)).items():
        for key, value, rule in _numbers(getattr(settings, name), hint, name):
            check(value, rule, key)


@lru_cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with their ranges."""
    types_ = typing.get_type_hints(cls, include_extras=True)
    return {field.name: types_[field.name] for field in dataclasses.fields(cls)}


def without_none(hint: Any) -> Any:
    """`X | None` → `X`; other types are returned unchanged."""
    if get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    return next(part for part in get_args(hint) if part is not type(None))


def range_of(hint: Any) -> Range | None:
    """The range of an annotated number; `None` for other types."""
    return next((part for part in get_args(hint)[1:] if isinstance(part, Range)), None) if is_annotated(hint) else None


def is_annotated(hint: Any) -> bool:
    """Whether a type is `Annotated[…]`."""
    return get_origin(hint) is Annotated


def _numbers(value: Any, hint: Any, key: str) -> Iterator[tuple[str, Any, Range]]:
    """Every number of a field that has a range: key, value, range."""
    if value is None:
        return
    hint = without_none(hint)
    if rule := range_of(hint):
        yield key, value, rule
    elif get_origin(hint) is tuple:
        parts = get_args(hint)
        for i, part in enumerate(value):
            yield from _numbers(part, parts[0] if parts[-1] is Ellipsis else parts[i], f"{key}[{i}]")
