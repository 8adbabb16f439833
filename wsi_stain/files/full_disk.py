"""A full disk: recognised in one place, and reported in one sentence."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from wsi_stain.errors import InsufficientResources

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a system call reports if the disk, or the user's quota on it, is used up."""


@contextmanager
def reporting_full_disk(path: Path, needed_bytes: int | None = None) -> Generator[None]:
    """Replace the error of a full disk or quota by `InsufficientResources`, also if it was re-raised as another error.

    Args:
        path: the file or folder that is written.
        needed_bytes: what the run needed when it started, for the message.

    Raises:
        InsufficientResources: the disk of `path` is full, or the user's quota on it is used up.
    """
    try:
        yield
    except InsufficientResources:
        raise
    except Exception as err:
        if not is_full(err):
            raise
        raise no_resources(err, path, needed_bytes) from err


def no_resources(error: BaseException, path: Path, needed_bytes: int | None = None) -> InsufficientResources:
    """The message for the error of a full disk; arguments as for `reporting_full_disk`."""
    needed = "" if needed_bytes is None else f"about {gib(needed_bytes)} were needed when this run started, "
    if errno.EDQUOT in _numbers(error):  # free space says nothing about a quota
        cause = f"the quota on the disk of {path} is used up{': ' if needed else ''}{needed.removesuffix(', ')}"
    else:
        absolute = path.absolute()
        folder = next(folder for folder in (absolute, *absolute.parents) if folder.is_dir())
        free = f"{gib(shutil.disk_usage(folder).free)} are free now"
        cause = f"the disk of {path} is full: {needed}{'but only ' if needed else ''}{free}"
    return InsufficientResources(f"{cause}; free some space and re-run the same command")


def is_full(error: BaseException) -> bool:
    """Whether a full disk or quota caused the error, or an error that it was raised from."""
    return not FULL.isdisjoint(_numbers(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and the errors that it was raised from or during."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def gib(n_bytes: float) -> str:
    """A number of bytes as text, for example `1.5 GiB`."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def _numbers(error: BaseException) -> set[int]:
    """The numbers of the system errors among the causes."""
    return {cause.errno for cause in causes(error) if isinstance(cause, OSError) and cause.errno is not None}
