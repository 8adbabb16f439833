"""Every shipped bundle stains a tile, which must be the one that it stained when it was shipped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from wsi_stain import phantom
from wsi_stain.doctor.finding import Finding
from wsi_stain.doctor.readers import SAMPLES
from wsi_stain.errors import WsiStainError
from wsi_stain.geometry import Box, Size
from wsi_stain.model.bundle import Bundle, shipped
from wsi_stain.model.export import check

SIDE_PX, REDUCED = 256, 4
"""Side of the tile, and of the boxes whose means are compared."""
MOST_DIFFERENCE = 1.0
"""Grey levels on average: float32 on other processors differs by less than a tenth."""
FIELD = Size(4096, 4096)
REINSTALL = "install wsi-stain again; if it stays, use another device (--device cpu) and report it"


def check_bundles() -> Iterator[Finding]:
    """One finding per bundle."""
    for name in shipped():
        subject = f"model {name}"
        problems = check(name, tiles=False)
        if problems:
            yield Finding(subject, "FAIL", "; ".join(problems), REINSTALL)
        else:
            yield _compared(subject, Bundle.open(name))


def stained(bundle: Bundle, device: str) -> np.ndarray:
    """A tile of procedural tissue as the bundle stains it in float32, reduced: uint8 (64, 64, 3)."""
    corner = (FIELD.h - SIDE_PX) // 2
    box = Box(corner, corner, corner + SIDE_PX, corner + SIDE_PX)
    tile = phantom.render(box, size=FIELD, mpp=bundle.mpp or 0.5)
    result = bundle.generator(device, precision="fp32")(tile[None])[0]
    n = SIDE_PX // REDUCED
    return result.reshape(n, REDUCED, n, REDUCED, 3).mean((1, 3)).round().astype(np.uint8)


def _compared(subject: str, bundle: Bundle) -> Finding:
    if bundle.folder is None:
        return Finding(subject, "PASS", "returns its input")
    path = SAMPLES / f"bundle-{bundle.name}.png"
    if not path.is_file():
        return Finding(subject, "WARN", "stains a tile; there is no tile to compare it with")
    with Image.open(path) as picture:
        expected = np.asarray(picture).astype(int)
    try:
        difference = float(np.abs(stained(bundle, "auto") - expected).mean())
    except WsiStainError as err:
        return Finding(subject, "FAIL", str(err), REINSTALL)
    if difference > MOST_DIFFERENCE:
        return Finding(subject, "FAIL", f"its tile is off by {difference:.1f} grey levels on average", REINSTALL)
    return Finding(subject, "PASS", f"version {bundle.version}: hash, card, and a tile are right")
