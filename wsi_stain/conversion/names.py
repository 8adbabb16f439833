"""Whether an output's name leaves room for the names of the files beside it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from wsi_stain.errors import OutputError

USUAL_BYTES = 255
"""Longest name on ext4, XFS, NTFS and APFS."""


def check_name(output: Path) -> None:
    """Check the longest name that a conversion writes: the record, under its temporary name.

    Raises:
        OutputError: the file system does not allow it; the message gives both numbers.
    """
    longest = os.fsencode(f".{output.name}.run.json.{uuid.UUID(int=0).hex}")
    allowed = _allowed(output.absolute().parent)
    if len(longest) > allowed:
        spare = allowed - (len(longest) - len(os.fsencode(output.name)))
        raise OutputError(
            f"the output's name is {len(os.fsencode(output.name))} bytes long, but with the names of the files beside "
            f"it at most {spare} fit ({output.name[:40]}…); choose a shorter name with -o"
        )


def _allowed(folder: Path) -> int:
    """Bytes of the longest name in a folder, which may be missing."""
    try:
        return os.pathconf(next(path for path in (folder, *folder.parents) if path.is_dir()), "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows has no pathconf
        return USUAL_BYTES
