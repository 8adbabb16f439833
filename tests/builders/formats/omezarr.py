"""OME-Zarr as other software writes it: 0.4 and 0.5, and the layout of bioformats2raw."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from builders.formats.picture import Built, picture, reduced

Version = Literal["0.4", "0.5"]


def ome_zarr(path: Path, *, version: Version, raw: bool = False, unit: str = "micrometer") -> Built:
    """A pyramid of three levels; `raw` puts it behind a macro image, as bioformats2raw does."""
    mpp, truth = 0.25, picture(1000, 1300)
    root = zarr.create_group(path, zarr_format=_format(version))
    if not raw:
        pyramid(root, truth, mpp, version=version, unit=unit)
        return Built(path, truth, mpp, format=f"OME-Zarr {version}", codec="Zstd")
    mark(root, {"bioformats2raw.layout": 3}, version)
    mark(root.create_group("OME"), {"series": ["0", "1"]}, version)
    pyramid(root.create_group("0"), np.full((1600, 1000, 3), (200, 40, 40), np.uint8), 16.0, version=version, unit=unit)
    pyramid(root.create_group("1"), truth, mpp, version=version, unit=unit)
    images = "".join(
        f'<Image ID="Image:{n}" Name="{name}"><ObjectiveSettings ID="Objective:{n}"/><Pixels/></Image>'
        for n, name in enumerate(("background", "scan"))
    )
    powers = "".join(f'<Objective ID="Objective:{n}" NominalMagnification="{p}"/>' for n, p in enumerate((1.25, 40)))
    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument>{powers}</Instrument>{images}</OME>'
    (path / "OME" / "METADATA.ome.xml").write_text(xml)
    return Built(path, truth, mpp, 40, format=f"bioformats2raw {version}", codec="Zstd")


def pyramid(
    group: Any, pixels: np.ndarray, mpp: float, *, version: Version, unit: str = "micrometer", planes: int = 1
) -> None:
    """A multiscale image TCZYX; of several planes the middle one shows the pixels, the others their negative."""
    datasets = []
    for level, factor in enumerate((1, 4, 16)):
        small = np.moveaxis(pixels if factor == 1 else reduced(pixels, factor), -1, 0)
        stack = np.stack([small if n == planes // 2 else 255 - small for n in range(planes)], axis=1)[None]
        group.create_array(str(level), data=stack, chunks=(1, 1, 1, 200, 300))
        step = [1.0, 1.0, 1.0, mpp * factor, mpp * factor]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": step}]})
    space = [{"name": axis, "type": "space", **({"unit": unit} if unit else {})} for axis in "zyx"]
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *space]
    scales = {"axes": axes, "datasets": datasets, **({"version": version} if version == "0.4" else {})}
    mark(group, {"multiscales": [scales]}, version)


def mark(group: Any, attributes: dict[str, Any], version: Version) -> None:
    """Attributes where that version has them."""
    group.attrs.update(attributes if version == "0.4" else {"ome": {"version": version, **attributes}})


def _format(version: Version) -> Literal[2, 3]:
    return 2 if version == "0.4" else 3
