"""The job of a conversion: everything that travels to the workers, and the report of a block that comes back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wsi_stain.conversion import certify
from wsi_stain.conversion.names import check_name
from wsi_stain.conversion.provenance import Fingerprint, provenance
from wsi_stain.conversion.seams import OffsetTile
from wsi_stain.conversion.timing import Where
from wsi_stain.conversion.view import ViewSpec
from wsi_stain.errors import OutputError
from wsi_stain.geometry import Box
from wsi_stain.measure.deconvolution import Background
from wsi_stain.output.canvas import Canvas, CanvasSpec
from wsi_stain.output.dicom_canvas import DicomCanvas
from wsi_stain.output.tiff_canvas import TiffCanvas
from wsi_stain.output.zarr_canvas import ZarrCanvas
from wsi_stain.tiling.grid import TileGrid

if TYPE_CHECKING:  # workers need no survey, which imports scikit-image
    from wsi_stain.conversion.request import ConvertRequest
    from wsi_stain.conversion.survey import Survey

Kind = Literal["tiff", "zarr", "dicom"]

CANVASES: dict[Kind, type[TiffCanvas] | type[ZarrCanvas]] = {
    "tiff": TiffCanvas,
    "zarr": ZarrCanvas,
    "dicom": DicomCanvas,
}
ENDINGS: dict[str, Kind] = {".ome.tiff": "tiff", ".ome.tif": "tiff", ".ome.zarr": "zarr", ".dcm": "dicom"}


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a worker needs to paint blocks of one conversion; small, hashable, picklable."""

    view: ViewSpec
    grid: TileGrid
    """Tiles and blocks in the view's frame; the first pixel of its region is the origin of the canvas."""
    canvas: CanvasSpec
    kind: Kind
    fingerprint: Fingerprint
    model: str
    """Name or folder of the bundle."""
    device: str
    batch: int | None
    """Tiles per call of the generator; None uses the default of its device."""
    cache_mib: int
    mask: Path | None
    """File of `save_mask`; None treats every tile as tissue."""
    offset_tiles: tuple[OffsetTile, ...] = ()
    """Tiles off the grid that are stained a second time for the seam certificate."""
    calibration: tuple[Box, ...] = ()
    """Tiles, in the view's frame, that give the statistics of the slide; empty if the network has frozen statistics."""

    @classmethod
    def of(cls, survey: Survey) -> Job:
        """The job that a survey leads to.

        Raises:
            OutputError: the name of the output cannot be used.
        """
        request, fingerprint = survey.request, Fingerprint.of(survey)
        output, kind = _output(survey)
        canvas = _canvas(survey, fingerprint, output)
        job = cls(
            view=survey.view,
            grid=survey.grid,
            canvas=canvas,
            kind=kind,
            fingerprint=fingerprint,
            model=_model(request),
            device=request.device,
            batch=request.config.batch,
            cache_mib=request.config.cache_mib,
            mask=None if request.mask == "none" else canvas.spool / "tissue.npz",
        )
        tiles = certify.calibration(survey, job.seed) if survey.norm == "slide" else ()
        return replace(job, offset_tiles=certify.sites(survey, job.seed).offset_tiles, calibration=tiles)

    @property
    def output(self) -> Path:
        """The final name of the output."""
        return self.canvas.output

    @property
    def seed(self) -> int:
        """Seed of the places where the output is examined; equal for equal settings."""
        return certify.seed(self.grid, self.canvas.provenance)

    @property
    def colour_of_background(self) -> Background | None:
        """Colour (R, G, B) of the background; None if the output has fluorescence channels."""
        if self.canvas.channels:
            return None
        red, green, blue = self.canvas.background
        return red, green, blue

    @property
    def statistics(self) -> Path | None:
        """File with the statistics of the slide, used by all workers and by a resumed run."""
        return self.canvas.spool / "norm.safetensors" if self.calibration else None

    def open_canvas(self) -> Canvas:
        """The canvas of this job."""
        return CANVASES[self.kind](self.canvas)


@dataclass(frozen=True, slots=True)
class BlockReport:
    """Report of a painted block; each tile is counted once over all blocks."""

    index: tuple[int, int]
    tiles: int
    tissue: int
    generated: int
    """Tiles that the generator stained for this block, including repeats."""
    unreadable: tuple[Box, ...]
    """Tiles, in the view's frame, that could not be read and were filled with background; both blocks of a shared tile
    report it."""
    offset_tiles: int
    """Tiles stained a second time for the seam certificate."""
    seconds: dict[str, float] = field(hash=False)
    """Time in the stages read, wait (for the device), generate, blend, certify and write."""
    where: Where = field(default_factory=Where.here)
    """The thread that painted it."""


def mask_beside(survey: Survey, output: Path) -> Path | None:
    """Path of the tissue mask next to the output; None without a mask, or if it would overwrite the user's file."""
    request = survey.request
    if request.mask == "none" or survey.reading.stored_mpp:  # outlines are drawn on square pixels
        return None
    path = output.with_name(output.name[: -len(_ending(output))] + ".tissue.geojson")
    return None if path.resolve() == Path(request.mask).resolve() else path


def _output(survey: Survey) -> tuple[Path, Kind]:
    name = f"{survey.request.slide.stem}.{survey.bundle.stain_slug}.ome.tiff"
    output = survey.request.reachable(survey.request.output or Path(name))
    kind = ENDINGS[_ending(output)]
    check_name(output)
    if output.exists() and output.is_dir() != (kind != "tiff"):
        raise OutputError(
            f"{output} is a {'folder' if output.is_dir() else 'file'}, but the output would be a "
            f"{'file' if kind == 'tiff' else 'folder'}; choose another name with -o, or remove it first"
        )
    if kind == "dicom":
        _check_dicom(survey)
    return output, kind


def _check_dicom(survey: Survey) -> None:
    """Refuse what a DICOM series cannot hold."""
    slide, bundle = survey.request.slide, survey.bundle
    if survey.view_mpp is None:
        raise OutputError(f"{slide.name} has no pixel size, which DICOM requires; pass --mpp, for example --mpp 0.25")
    if bundle.channels:
        raise OutputError(
            f"{bundle.name} makes {len(bundle.channels)} fluorescence channels, and DICOM is written in colours only; "
            "choose an output that ends in .ome.tiff or .ome.zarr"
        )


def _ending(output: Path) -> str:
    match = next((ending for ending in ENDINGS if output.name.lower().endswith(ending)), None)
    if match is None or len(output.name) == len(match):
        raise OutputError(
            f"the output is {str(output)!r}: its name must end in .ome.tiff, .ome.tif, .ome.zarr or .dcm; "
            "choose another name with -o"
        )
    return match


def _model(request: ConvertRequest) -> str:
    """The bundle as workers find it: a name, or the path of a folder."""
    path = Path(request.model)
    return str(request.reachable(path) if path.is_dir() else request.model)


def _canvas(survey: Survey, fingerprint: Fingerprint, output: Path) -> CanvasSpec:
    return CanvasSpec(
        output=output,
        size=survey.grid.region.size,
        block=survey.grid.block,
        background=survey.bundle.background,
        encoding=survey.request.config.output,
        mpp=survey.view_mpp,
        provenance=tuple(provenance(fingerprint, survey.bundle.stain, survey.reading.bounds).items()),
        magnification=survey.magnification,
        stain=survey.bundle.stain,
        uuid=fingerprint.uuid,
        channels=survey.bundle.channels,
    )
