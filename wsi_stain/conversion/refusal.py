"""What must not be stained: an image that is a virtual stain already, or was not taken in transmitted light."""

from __future__ import annotations

from pathlib import Path

from wsi_stain.errors import SlideError
from wsi_stain.output.virtual import virtual_stain
from wsi_stain.slide.brightfield import check_brightfield
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
