"""Virtual immunostains of whole H&E slides, tile by tile, into files that QuPath opens.

The public names are imported when they are first used, so that `import wsi_stain` costs nothing:

>>> from wsi_stain import ConvertRequest, convert  # doctest: +SKIP
>>> convert(ConvertRequest(slide=Path("slide.svs"))).output  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_stain.bundle import Bundle
    from wsi_stain.config import ConvertConfig
    from wsi_stain.engine import convert
    from wsi_stain.errors import WsiStainError
    from wsi_stain.ometiff import problems
    from wsi_stain.request import ConvertRequest
    from wsi_stain.slide import Slide
    from wsi_stain.training_config import TrainConfig

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "bundle",
    "ConvertConfig": "config",
    "ConvertRequest": "request",
    "Slide": "slide",
    "TrainConfig": "training_config",
    "WsiStainError": "errors",
    "convert": "engine",
    "problems": "ometiff",
}

__all__ = [
    "Bundle",
    "ConvertConfig",
    "ConvertRequest",
    "Slide",
    "TrainConfig",
    "WsiStainError",
    "__version__",
    "convert",
    "problems",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
