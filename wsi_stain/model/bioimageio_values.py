"""What the pixel values 0 and 255 are for the network of a model of BioImage.IO, from its pre- and postprocessing.

Steps with constants are straight lines; put together, they are the two numbers that a bundle states. Steps that measure
the tile (percentiles, its mean) would draw seams and are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

Line = tuple[float, float]
"""Gain and offset: x → gain · x + offset."""
Values = tuple[float, float]

SAME: Line = (1.0, 0.0)
ROUND = 0.5
"""A cast to whole numbers cuts off, and we round: a value v becomes the whole number nearest to v - 0.5."""
SLACK = 0.51 / 255
"""Share of a range by which a clip may be inside it: half a grey level, which a cast to whole numbers cuts off."""
OF_THE_TILE = {"zero_mean_unit_variance", "scale_range", "scale_mean_variance"}
LARGEST = 1e9


def data_range(tensor: Mapping[str, Any]) -> Values | None:
    """The values of black and white in the tensor as people see it; None if it is not stated.

    Raises:
        ValueError: the entry has another form.
    """
    data = tensor.get("data") or {}
    if isinstance(data, list) and data and all(item == data[0] for item in data):
        data = data[0]
    if not isinstance(data, dict):
        raise ValueError("data must be a mapping of keys to values, the same for all channels")
    if data.get("type") == "uint8":
        return 0.0, 255.0
    limits = data.get("range")
    if not isinstance(limits, list) or len(limits) != 2 or None in limits:
        return None
    low, high = (number(limit, "data.range") for limit in limits)
    if low >= high:
        raise ValueError(f"data.range is {low:g}, {high:g}: the first must be below the second")
    return low, high


def input_values(tensor: Mapping[str, Any], limits: Values | None) -> Values | None:
    """What black and white become for the network; None if the range of the data is not stated.

    Raises:
        ValueError: a step of the preprocessing cannot be put into two numbers.
    """
    line, clips = SAME, list[Values]()
    for name, arguments in _steps(tensor, "preprocessing"):
        if name == "clip":
            clips.append(_bounds(arguments, line))
        elif name == "ensure_dtype" and _is_whole(arguments) and line != SAME:
            raise ValueError("preprocessing casts scaled values to whole numbers; only float32 is supported")
        elif name != "ensure_dtype":
            line = _after(line, _line(name, arguments, "preprocessing"))
    if limits is None:
        return None
    _check_clips(clips, limits, "preprocessing")
    return _at(line, limits[0]), _at(line, limits[1])


def output_values(tensor: Mapping[str, Any], limits: Values | None) -> Values | None:
    """What the network gives for black and white; None if the range of the data is not stated.

    Raises:
        ValueError: a step of the postprocessing cannot be put into two numbers.
    """
    line, clips = SAME, list[Values]()
    for name, arguments in _steps(tensor, "postprocessing"):
        if name == "clip":
            clips.append(_bounds(arguments, line))
        elif name == "ensure_dtype":
            line = _after(line, (1.0, -ROUND)) if _is_whole(arguments) else line
        else:
            line = _after(line, _line(name, arguments, "postprocessing"))
    if limits is None:
        return None
    values = _inverse(line, limits[0]), _inverse(line, limits[1])
    _check_clips(clips, values, "postprocessing")
    return values


def _steps(tensor: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    steps = tensor.get(key) or []
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError(f"{key} must be a list of steps")
    for step in steps:
        arguments = step.get("kwargs") or {}
        if not isinstance(arguments, dict):
            raise ValueError(f"{key}: kwargs must be a mapping of keys to values")
        yield str(step.get("id"))[:40], arguments


def _line(name: str, arguments: Mapping[str, Any], key: str) -> Line:
    if name in OF_THE_TILE:
        raise ValueError(
            f"{key} has {name}, which scales each tile by its own statistics and so draws seams; use constants "
            "(scale_linear, fixed_zero_mean_unit_variance), or a normalisation in the graph"
        )
    if name == "scale_linear":
        gain, offset = _constant(arguments, "gain", 1.0), _constant(arguments, "offset", 0.0)
    elif name == "fixed_zero_mean_unit_variance":
        deviation = _constant(arguments, "std", None)
        gain = 1 / deviation if deviation else 0.0
        offset = -_constant(arguments, "mean", None) * gain
    else:
        raise ValueError(f"{key} has {name}, which is not supported; put it into the graph")
    if gain <= 0:
        raise ValueError(f"{key} has {name} with a factor that is not above zero")
    return gain, offset


def _constant(arguments: Mapping[str, Any], key: str, default: float | None) -> float:
    value = arguments.get(key, default)
    if isinstance(value, list) and value:
        if any(item != value[0] for item in value):
            raise ValueError(f"{key} differs between channels, which is not supported; put the scaling into the graph")
        value = value[0]
    return number(value, key)


def number(value: Any, key: str) -> float:
    """A number of the description.

    Raises:
        ValueError: it is another value, not finite, or absurdly large.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError(f"{key} is {str(value)[:40]!r}; it must be a number")
    return float(value)


def _is_whole(arguments: Mapping[str, Any]) -> bool:
    kind = str(arguments.get("dtype"))
    if not kind.startswith(("float", "int", "uint")):
        raise ValueError(f"ensure_dtype has the dtype {kind[:40]!r}, which no image has")
    return not kind.startswith("float")


def _bounds(arguments: Mapping[str, Any], line: Line) -> Values:
    """The bounds of a clip, as values before the steps of `line`."""
    if "min_percentile" in arguments or "max_percentile" in arguments:
        raise ValueError("clip has percentiles of each tile, which draw seams; use constants")
    low, high = arguments.get("min"), arguments.get("max")
    return (
        -math.inf if low is None else _inverse(line, number(low, "clip.min")),
        math.inf if high is None else _inverse(line, number(high, "clip.max")),
    )


def _check_clips(clips: list[Values], limits: Values, key: str) -> None:
    slack = SLACK * (limits[1] - limits[0])
    for low, high in clips:
        if low > limits[0] + slack or high < limits[1] - slack:
            raise ValueError(f"{key} clips values between black and white, which is not supported")


def _after(line: Line, step: Line) -> Line:
    return line[0] * step[0], line[1] * step[0] + step[1]


def _at(line: Line, x: float) -> float:
    return round(line[0] * x + line[1], 9)


def _inverse(line: Line, y: float) -> float:
    return round((y - line[1]) / line[0], 9)
