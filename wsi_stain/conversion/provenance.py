"""The fingerprint of a run, which a resumed run must match, and the provenance that an output records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from wsi_stain import __version__
from wsi_stain.cluster.workers import ask
from wsi_stain.config.convert import Precision
from wsi_stain.config.loader import dump
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.errors import ConfigError, OutputError
from wsi_stain.files import record
from wsi_stain.geometry import Box
from wsi_stain.model.bundle import Bundle
from wsi_stain.output import ometiff
from wsi_stain.output.canvas import CanvasSpec
from wsi_stain.slide.slide import Slide, View
from wsi_stain.tissue.mask import TissueMask

ORDER = "x, y, w, h"
"""Order of `region` in records, in level-0 px of the slide's file."""


def fingerprint(
    request: ConvertRequest,
    bundle: Bundle,
    mask: TissueMask,
    region: tuple[int, int, int, int],
    view: View,
    source: tuple[str, int] | None,
) -> dict[str, Any]:
    """Everything that can change a byte of the output; `region` is (x, y, w, h) in level-0 px of the file."""
    grid = request.config.grid
    sha256, size = source or _source(request.slide)
    return {
        "source_sha256": sha256,
        "source_bytes": size,
        "mpp": None if view.mpp is None else float(view.mpp),
        "scale": str(view.scale),
        "region": list(region),
        "region_order": ORDER,
        "model": bundle.name,
        "model_version": bundle.version,
        "model_sha256": bundle.sha256,
        "glass": list(bundle.glass),
        "tile": bundle.tile if grid.tile is None else grid.tile,
        "overlap": bundle.overlap if grid.overlap is None else grid.overlap,
        "block": grid.block,
        "mask_sha256": mask.sha256,
        "output": dump(request.config.output),
        "norm": _norm(request, bundle),
        "certificate": request.config.certificate,
        "wsi_stain": __version__,
    }


def precision(request: ConvertRequest, bundle: Bundle) -> Precision:
    """The precision that `auto` selects on the staining devices; fixed before writing, since it changes the pixels."""
    if request.scheduler is None:
        return bundle.precision(request.device, request.precision)
    if request.precision != "auto":
        return request.precision  # the devices of the workers matter, not those of this machine
    choices = sorted(set(ask(request.scheduler, partial(bundle.precision, request.device, "auto"))))
    if len(choices) > 1:
        raise ConfigError(
            f"the workers of {request.scheduler} are fastest in different precisions ({', '.join(choices)}), so the "
            f"pixels would depend on the worker; choose one for all, for example --precision {choices[-1]}"
        )
    return choices[0]


def _norm(request: ConvertRequest, bundle: Bundle) -> str:
    """Source of the network's normalization statistics: training, the slide, or each tile."""
    if bundle.has_tile_statistics:
        return request.norm or "slide"
    if request.norm is not None:
        raise ConfigError(
            f"--norm is {request.norm}, but the statistics of {bundle.name} were frozen in training; omit --norm"
        )
    return "frozen"


def _source(slide: Path) -> tuple[str, int]:
    """SHA-256 and bytes of the slide's file; for a DICOM folder, of all its instances in order of name."""
    total, size = hashlib.sha256(), 0
    for path in sorted(slide.glob("*.dcm")) if slide.is_dir() else [slide]:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: total)
        size += path.stat().st_size
    return total.hexdigest(), size


def slide_facts(slide: Slide) -> dict[str, Any]:
    """What a record states of how the slide is read; absent where there is nothing to state."""
    facts: dict[str, Any] = {"image": slide.image, "plane": slide.plane, "notes": list(slide.notes) or None}
    facts["bounds"] = None if slide.bounds is None else list(slide.bounds)
    facts["stored_mpp"] = None if slide.stretch == (1, 1) else [float(slide.mpp * s) for s in slide.stretch[::-1]]
    return {key: value for key, value in facts.items() if value is not None}


def provenance(print_: Mapping[str, Any], stain: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """The provenance that an output records: a whitelist without texts from the slide.

    Regions and bounds are x,y,w,h in level-0 px of the slide's file.
    """
    keys = (
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
    return {
        "notice": ometiff.NOTICE,
        "use": ometiff.RESEARCH_USE,
        "stain": stain,
        **{key: str(print_[key]) for key in keys},
        "region": ",".join(map(str, print_["region"])),
        **({"bounds": ",".join(map(str, facts["bounds"]))} if "bounds" in facts else {}),
        **{key: str(facts[key]) for key in ("image", "plane") if key in facts},
        "software": f"wsi-stain {__version__}",
    }


def in_this_order(old: Mapping[str, Any], print_: Mapping[str, Any], region: Box) -> Mapping[str, Any]:
    """A recorded fingerprint; one without `region_order` has its region as (y0, x0, y1, x1) in the view's px.

    Args:
        old: the recorded fingerprint.
        print_: today's fingerprint of the same conversion.
        region: today's region in the view's px.
    """
    if "region_order" in old or old.get("region") != list(region):
        return old
    return {**old, "region": print_["region"], "region_order": ORDER}


def is_done(canvas: CanvasSpec, print_: Mapping[str, Any], region: Box, *, restart: bool) -> bool:
    """Whether the finished output has the fingerprint `print_`; OutputError if it has another.

    Args:
        canvas: the output.
        print_: the fingerprint of this conversion.
        region: its region in the view's px, for records of older versions.
        restart: whether an existing output is to be replaced.
    """
    if restart or not canvas.output.exists():
        return False
    old = record.read(record.path_of(canvas.output)).get("fingerprint")
    if old is not None and in_this_order(old, print_, region) == print_:
        return True
    if record.read(canvas.spool / "run.json") == print_:
        return False  # an interrupted restart: it already has permission to replace the output
    raise OutputError(
        f"{canvas.output} exists and was made with other settings; choose another name with -o, or add "
        "--restart to replace it"
    )
