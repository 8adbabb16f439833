"""What a slide must not be: of another kind, or another one at the end of its conversion than at the beginning."""

from __future__ import annotations

from pathlib import Path

from wsi_stain.errors import SlideError
from wsi_stain.output.virtual import virtual_stain
from wsi_stain.slide.brightfield import check_brightfield
from wsi_stain.slide.files import digest, stamp
from wsi_stain.slide.slide import Slide


def check_source(slide: Slide, *, allow_virtual: bool, force_brightfield: bool) -> None:
    """Refuse an opened slide that must not be stained.

    Args:
        slide: the slide.
        allow_virtual: accept an image that is a virtual stain already.
        force_brightfield: accept a slide without a bright background.

    Raises:
        SlideError: it is a virtual stain, or was not taken in transmitted light.
    """
    if not allow_virtual:
        refuse_virtual(slide.path)
    if not force_brightfield:
        check_brightfield(slide)


def refuse_virtual(path: Path) -> None:
    """Refuse an image that says that it is a virtual stain.

    Raises:
        SlideError: it is one.
    """
    stain = virtual_stain(path)
    if stain is not None:
        what = f"a virtual stain ({stain})" if stain else "a virtual stain"
        raise SlideError(
            f"{path.name} is {what}, not a scan of a slide; pass the H&E slide from which it was made, or add "
            "--allow-virtual to stain it all the same"
        )


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
