"""Self-contained HTML pages from jinja2 templates: every value is escaped, and nothing is loaded from elsewhere.

A room that writes pages has a folder `templates`. Its templates extend `page.html.jinja` of this room.
"""

from __future__ import annotations

import base64

import cv2
import imagecodecs
import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template


def template(room: str, name: str) -> Template:
    """A template of a room.

    Args:
        room: name of the package with the folder `templates`, for example `wsi_stain.cohort`.
        name: file name of the template.
    """
    loader = ChoiceLoader([PackageLoader(room, "templates"), PackageLoader("wsi_stain.files", "templates")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def embedded(content: bytes) -> str:
    """The bytes of a picture as a page holds them: base64."""
    return base64.b64encode(content).decode()


def jpeg(pixels: np.ndarray, *, quality: int = 82, longest: int | None = None) -> str:
    """Pixels as a page holds them: JPEG in base64.

    Args:
        pixels: uint8 (h, w, 3), sRGB.
        quality: of the JPEG, 1 to 100.
        longest: longer side in px from which they are reduced; by default they are not.
    """
    h, w = pixels.shape[:2]
    if longest is not None and max(h, w) > longest:
        size = (max(1, round(n * longest / max(h, w))) for n in (w, h))
        pixels = cv2.resize(pixels, tuple(size), interpolation=cv2.INTER_AREA)
    return embedded(bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=quality)))
