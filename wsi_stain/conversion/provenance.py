"""The fingerprint of a run, whether an output already has it (`is_done`), and the provenance that an output records."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsi_stain import __version__
from wsi_stain.config.convert import OutputConfig, Precision
from wsi_stain.config.loader import dump
from wsi_stain.errors import OutputError
from wsi_stain.files import record
from wsi_stain.geometry import Box
from wsi_stain.output import ometiff
from wsi_stain.output.canvas import CanvasSpec

if TYPE_CHECKING:  # workers need no survey, which imports scikit-image
    from wsi_stain.conversion.survey import Survey

ORDER = "x, y, w, h"
"""Order of `region` in records, in level-0 px of the slide's file."""
RECORDED = (
    "source_sha256",
    "model",
    "model_version",
    "model_sha256",
    "tile",
    "overlap",
    "mask_sha256",
    "precision",
    "norm",
    "icc_profile",
)
"""The parts of the fingerprint that an output records: a whitelist without texts from the slide."""
OPTIONAL = ("image", "plane", "network_sha256", "channels")
"""Parts of the fingerprint that are left out if they are None."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that can change a byte of the output; a run resumes only with an equal fingerprint.

    The names of the fields are keys of `run.json` and of the run record: renaming one ends every unfinished run.
    """

    source_sha256: str
    source_bytes: int
    mpp: float | None
    """µm per px of the view."""
    scale: str
    """Level-0 px per px of the view, as a fraction."""
    region: tuple[int, int, int, int]
    """(x, y, w, h) in level-0 px as the file stores them."""
    region_order: str
    """`ORDER`; absent in records of older versions."""
    model: str
    model_version: str
    model_sha256: str
    background: tuple[int, ...]
    tile: int
    overlap: int
    block: int
    mask_sha256: str
    output: OutputConfig
    norm: str
    certificate: bool
    wsi_stain: str
    """Version of this package."""
    precision: Precision
    icc_profile: str
    image: int | None = None
    plane: int | None = None
    network_sha256: str | None = None
    """Hash of the settings of an imported network."""
    channels: tuple[str, ...] | None = None
    """Names and colours of fluorescence channels."""

    @classmethod
    def of(cls, survey: Survey) -> Fingerprint:
        """The fingerprint of the conversion that a survey prepares."""
        bundle, config, grid = survey.bundle, survey.request.config, survey.grid
        return cls(
            source_sha256=survey.source_sha256,
            source_bytes=survey.source_bytes,
            mpp=survey.view_mpp,
            scale=str(survey.scale),
            region=survey.region,
            region_order=ORDER,
            model=bundle.name,
            model_version=bundle.version,
            model_sha256=bundle.sha256,
            background=bundle.background,
            tile=grid.tile,
            overlap=grid.overlap,
            block=grid.block,
            mask_sha256=survey.mask.sha256,
            output=config.output,
            norm=survey.norm,
            certificate=config.certificate,
            wsi_stain=__version__,
            precision=survey.precision,
            icc_profile=survey.icc or "none: pixels as stored",
            image=survey.reading.image,
            plane=survey.reading.plane,
            network_sha256=bundle.network_sha256,
            channels=tuple(f"{channel.name}={channel.hex}" for channel in bundle.channels) or None,
        )

    def as_dict(self) -> dict[str, Any]:
        """The fingerprint as JSON stores it: tuples are lists, sections are mappings."""
        content: dict[str, Any] = dump(self)
        return {key: value for key, value in content.items() if value is not None or key not in OPTIONAL}

    @property
    def uuid(self) -> str:
        """A UUID that is equal for equal fingerprints."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, "wsi-stain:" + json.dumps(self.as_dict(), sort_keys=True)))


def provenance(fingerprint: Fingerprint, stain: str, bounds: tuple[int, int, int, int] | None) -> dict[str, str]:
    """The provenance that an output records.

    `region`, and the scan's `bounds` on the glass, are x,y,w,h in level-0 px as the slide's file stores them.
    """
    read = {"bounds": bounds and ",".join(map(str, bounds)), "image": fingerprint.image, "plane": fingerprint.plane}
    return {
        "notice": ometiff.NOTICE,
        "use": ometiff.RESEARCH_USE,
        "stain": stain,
        **{key: str(getattr(fingerprint, key)) for key in RECORDED},
        "region": ",".join(map(str, fingerprint.region)),
        **{key: str(value) for key, value in read.items() if value is not None},
        "software": f"wsi-stain {__version__}",
    }


def in_this_order(old: Mapping[str, Any], fingerprint: Fingerprint, region: Box) -> dict[str, Any]:
    """A recorded fingerprint in today's form.

    In older ones `background` is called `glass`; without `region_order`, the region is (y0, x0, y1, x1) in px of the
    view.

    Args:
        old: the recorded fingerprint.
        fingerprint: today's fingerprint of the same conversion.
        region: today's region in the view's px.
    """
    if "glass" in old:
        old = {**{key: value for key, value in old.items() if key != "glass"}, "background": old["glass"]}
    if "region_order" in old or old.get("region") != list(region):
        return dict(old)
    return {**old, "region": list(fingerprint.region), "region_order": ORDER}


def is_done(canvas: CanvasSpec, fingerprint: Fingerprint, region: Box, *, restart: bool) -> bool:
    """Whether the finished output has this fingerprint; OutputError if it has another.

    Args:
        canvas: the output.
        fingerprint: of this conversion.
        region: its region in the view's px, for records of older versions.
        restart: whether an existing output is to be replaced.
    """
    if restart or not canvas.output.exists():
        return False
    ours = fingerprint.as_dict()
    old = record.read(record.path_of(canvas.output)).get("fingerprint")
    if old is not None and in_this_order(old, fingerprint, region) == ours:
        return True
    if record.read(canvas.spool / "run.json") == ours:
        return False  # an interrupted restart: it already has permission to replace the output
    raise OutputError(
        f"{canvas.output} exists and was made with other settings or from another slide; choose another name with -o, "
        "or add --restart to replace it"
    )
