"""Standard output and error under any encoding: what the console cannot show is written in other letters."""

from __future__ import annotations

import codecs
import io
import sys

ASCII = {
    "µ": "u",
    "×": "x",
    "–": "-",
    "…": "...",
    "−": "-",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "±": "+-",
    "²": "2",
    "·": ".",
}


def use_any_encoding() -> None:
    """Let the streams of this process never raise `UnicodeEncodeError`."""
    codecs.register_error("wsi_stain", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="wsi_stain")


def _replaced(err: UnicodeError) -> tuple[str | bytes, int]:
    """The first unencodable character in ASCII; a byte of a file name that is not text stays that byte."""
    if not isinstance(err, UnicodeEncodeError):
        raise err
    character = err.object[err.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), err.start + 1
    text = ASCII.get(character) or character.encode("ascii", "backslashreplace").decode("ascii")
    return text, err.start + 1
