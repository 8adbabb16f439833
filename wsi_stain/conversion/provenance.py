"""The fingerprint of a run, which a resumed run must match, and the provenance that an output records."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
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
from wsi_stain.slide.files import digest
from wsi_stain.slide.slide import View
from wsi_stain.tissue.mask import TissueMask


def fingerprint(
    request: ConvertRequest, bundle: Bundle, mask: TissueMask, region: Box, view: View, source: tuple[str, int] | None
) -> dict[str, Any]:
    """Everything that can change a byte of the output."""
    grid = request.config.grid
    sha256, size = source or digest(request.slide)
    return {
        "source_sha256": sha256,
        "source_bytes": size,
        "mpp": None if view.mpp is None else float(view.mpp),
        "scale": str(view.scale),
        "region": list(region),
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


def provenance(print_: Mapping[str, Any], stain: str) -> dict[str, str]:
    """The provenance that an output records: a whitelist without texts from the slide."""
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
        "software": f"wsi-stain {__version__}",
    }


def is_done(canvas: CanvasSpec, print_: Mapping[str, Any], *, restart: bool) -> bool:
    """Whether the finished output has the fingerprint `print_`; OutputError if it has another."""
    if restart or not canvas.output.exists():
        return False
    if record.read(record.path_of(canvas.output)).get("fingerprint") == print_:
        return True
    if record.read(canvas.spool / "run.json") == print_:
        return False  # an interrupted restart: it already has permission to replace the output
    raise OutputError(
        f"{canvas.output} exists and was made with other settings or from another slide; choose another name with -o, "
        "or add --restart to replace it"
    )
