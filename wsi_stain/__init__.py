"""Converts whole H&E slides to virtual immunostains, tile by tile, in files that QuPath opens.

The public names are imported at first use, so that `import wsi_stain` is fast:

>>> from wsi_stain import ConvertRequest, convert  # doctest: +SKIP
>>> convert(ConvertRequest(slide=Path("slide.svs"))).output  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_stain.config.convert import ConvertConfig
    from wsi_stain.config.train import TrainConfig
    from wsi_stain.conversion.engine import convert
    from wsi_stain.conversion.request import ConvertRequest
    from wsi_stain.errors import WsiStainError
    from wsi_stain.model.bundle import Bundle
    from wsi_stain.output.ometiff import problems
    from wsi_stain.slide.slide import Slide
    from wsi_stain.view.virtual import VirtualSlide, virtual_slide

__version__ = "0.2.0"

_HOMES = {
    "Bundle": "model.bundle",
    "ConvertConfig": "config.convert",
    "ConvertRequest": "conversion.request",
    "Slide": "slide.slide",
    "TrainConfig": "config.train",
    "VirtualSlide": "view.virtual",
    "WsiStainError": "errors",
    "convert": "conversion.engine",
    "problems": "output.ometiff",
    "virtual_slide": "view.virtual",
}

__all__ = [
    "Bundle",
    "ConvertConfig",
    "ConvertRequest",
    "Slide",
    "TrainConfig",
    "VirtualSlide",
    "WsiStainError",
    "__version__",
    "convert",
    "problems",
    "virtual_slide",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
