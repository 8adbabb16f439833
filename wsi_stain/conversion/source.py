"""Whether a slide is the same at the end of its conversion as at the beginning."""

from __future__ import annotations

from pathlib import Path

from wsi_stain.errors import SlideError
from wsi_stain.slide.files import digest, stamp


class SourceChanged(SlideError):  # noqa: N818 - named for the event
    """Other pixels than at the beginning were read: what was painted must not be used."""


def check_unchanged(slide: Path, before: str, sha256: str, *, is_read: bool) -> None:
    """Refuse to go on with a slide whose files are not those that the conversion began with.

    Args:
        slide: the slide.
        before: its `stamp` before anything was read.
        sha256: of its content; read again only if a file was touched.
        is_read: whether all of it could be read.

    Raises:
        SourceChanged: a file was changed, or is missing and a part could not be read.
        SlideError: a file is missing.
    """
    now = stamp(slide)
    if now == before:
        return
    if not now or not slide.exists():
        raise (SlideError if is_read else SourceChanged)(
            f"{slide} was deleted or moved during the conversion; restore it and re-run the same command to resume"
        )
    if digest(slide)[0] != sha256:
        raise SourceChanged(
            f"{slide} was changed during the conversion, and what was painted is discarded; wait until it is fully "
            "copied, then convert it again"
        )
