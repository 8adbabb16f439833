"""Why OpenSlide refuses a file, as a sentence with the next step: damaged, incomplete, or a format it cannot read."""

from __future__ import annotations

import re

DAMAGED = re.compile(
    r"short read|premature|truncat|corrupt|end of file|unexpected eof|read past|couldn't read|cannot read|"
    r"error reading|not a jpeg|no jpeg|bad (magic|offset)",
    re.IGNORECASE,
)
MISSING = re.compile(r"no such file|couldn't open|cannot open|not found", re.IGNORECASE)
CONVERT = "convert it, for example to OME-TIFF with bfconvert"
DETAILS = {
    "leica": "its areas were scanned in different ways",
    "ventana": "slides of the scanners DP 200 and DP 600 are such files",
}


def refusal(name: str, vendor: str, reason: str) -> str:
    """The sentence for the user.

    Args:
        name: the file's name.
        vendor: what OpenSlide takes the file for.
        reason: OpenSlide's own message.
    """
    if is_damage(reason):
        return f"{name} cannot be opened ({reason}); the file is cut off or damaged; copy it again"
    if MISSING.search(reason):
        return f"{name} cannot be opened ({reason}); a file that belongs to the slide is missing; copy all of them"
    detail = f" ({DETAILS[vendor]})" if vendor in DETAILS else ""
    return f"{name} is a {vendor} file that OpenSlide cannot read: {reason}{detail}; {CONVERT}"


def is_damage(reason: str) -> bool:
    """Whether OpenSlide's message is that of a damaged file, not of an unknown format."""
    return bool(DAMAGED.search(reason)) and "unsupported" not in reason.lower()
