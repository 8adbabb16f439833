"""Numbers and units as files store them: the one table of units."""

from __future__ import annotations

import codecs
import math
import re

UM = {
    "pm": 1e-6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "nm": 1e-3,
    "µm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "dm": 1e5,
    "in": 25_400.0,
    "inch": 25_400.0,
    "ft": 304_800.0,
    "m": 1e6,
}
"""µm per unit. Units without a physical length (pixel, reference frame) are absent."""
LONG = {"micrometer": "µm", "nanometer": "nm", "millimeter": "mm", "centimeter": "cm", "meter": "m", '"': "in"}
"""Other spellings, in the American form and the singular."""


def number(text: object) -> float | None:
    """A stored text as a finite number, also with a decimal comma (0,25); `None` if it is not one."""
    words = str(text).strip()
    if words.count(",") == 1 and "." not in words:
        words = words.replace(",", ".")
    try:
        value = float(words)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def um_per(unit: str) -> float | None:
    r"""µm per unit, whatever its spelling: µ (U+00B5) and μ (U+03BC), Å (U+00C5) and Å (U+212B), ImageJ's `\u00B5m`."""
    name = re.sub(r"\\u[0-9A-Fa-f]{4}", lambda code: codecs.decode(code.group(), "unicode_escape"), unit.strip())
    name = name.replace("\u03bc", "\u00b5").replace("\u212b", "\u00c5").lower().replace("metre", "meter")
    for spelling in (name, name.removesuffix("es"), name.removesuffix("s")):
        spelling = LONG.get(spelling, spelling)
        if spelling in UM:
            return UM[spelling]
    return None


def in_um(value: object, unit: str) -> float | None:
    """A stored length in µm; `None` if it is not a positive number, or the unit is not a length."""
    length, factor = number(value), um_per(unit)
    return None if length is None or factor is None or length <= 0 else length * factor
