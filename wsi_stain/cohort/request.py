"""Input of a cohort run: settings, the request, and the rows of the sheet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from wsi_stain.config.convert import ConvertConfig, PrecisionChoice
from wsi_stain.config.ranges import NonNegative, NonNegativeInt, check_ranges
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.errors import ConfigError
from wsi_stain.model.bundle import DEFAULT, Bundle


@dataclass(frozen=True, slots=True)
class CohortConfig:
    """Settings of `wsi-stain cohort` that have no flag of their own."""

    convert: ConvertConfig = field(default_factory=ConvertConfig)
    """Conversion settings of every slide; the same keys as for `wsi-stain convert`."""
    retries: NonNegativeInt = 2
    """Number of retries of a slide after a transient failure: a lost worker, a network file system."""
    retry_wait_s: NonNegative = 5.0
    """Pause before the first retry, s; it doubles each time."""
    split_over: NonNegative = 4.0
    """Gigapixels at the model's scale above which the blocks of a slide are distributed over several workers."""
    stop_s: NonNegative = 5.0
    """Time that workers have to finish their blocks after Ctrl-C or SIGTERM before they are ended, s."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class Row:
    """One slide of a cohort."""

    line: int
    """Line in the sheet, where the header is line 1; for a folder or glob, the position in the sorted list."""
    slide_id: str
    """Base name of the outputs; unique in the cohort."""
    slide: Path
    mpp: float | None = None
    """Pixel size from the sheet or --mpp, µm per px; None to read it from the slide."""
    model: str = DEFAULT
    mask: str = "auto"
    """`auto`, `none`, or a GeoJSON file."""
    image: int | None = None
    """Number of the image to read, if the file holds several."""
    z: int | None = None
    """Number of the focal plane to read, if there are several."""
    output: str = ""
    """File name of the virtual stain in the cohort folder."""
    pixels: int = 0
    """Pixels of the slide at the model's scale; 0 = not known yet."""
    extra: tuple[tuple[str, str], ...] = ()
    """Name and value of the sheet's other columns, for the summary."""


@dataclass(frozen=True, slots=True)
class CohortRequest:
    """Request of the user; the fields are the flags of `wsi-stain cohort run`."""

    sheet: str
    """A CSV file, a folder of slides, or a glob."""
    folder: Path
    """Folder for the outputs and the accounts."""
    model: str = DEFAULT
    """Default for rows without a model."""
    mpp: float | None = None
    """Default for rows without a pixel size, µm per px."""
    mask: str = "auto"
    """Default for rows without a mask."""
    device: str = "auto"
    precision: PrecisionChoice = "auto"
    allow_upsampling: bool = False
    allow_virtual: bool = False
    """Accept slides that are virtual stains already; a folder then includes them."""
    force_brightfield: bool = False
    """Accept slides without a bright background."""
    config: CohortConfig = field(default_factory=CohortConfig)
    cluster: Path | None = None
    """YAML file of a cluster to start."""
    scheduler: str | None = None
    """Address of a running Dask scheduler."""
    rows: tuple[int, ...] = ()
    """Only these slides of the sheet, counted from 1; all if empty."""
    shard: tuple[int, int] | None = None
    """Only part I of N, as (I, N), for job arrays."""
    strict: bool = False
    """Refuse the whole cohort if one row cannot be used; otherwise such rows fail, and the others are converted."""
    retry_failed: bool = False
    break_stale_locks: bool = False
    """Break locks of processes on other hosts, whose state cannot be checked from this host."""

    log_lines: bool = False
    """Whether workers log as JSON lines."""

    def __post_init__(self) -> None:
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise ConfigError(f"--shard is {self.shard[0]}/{self.shard[1]}: it must be I/N with I between 1 and N")
        if self.shard is not None and self.rows:
            raise ConfigError("--shard and --rows exclude each other; pass one of them")
        if self.cluster is not None and self.scheduler is not None:
            raise ConfigError("--cluster and --scheduler exclude each other; pass one of them")

    def is_chosen(self, index: int) -> bool:
        """Whether this run converts the row with this index, counted from 0."""
        if self.shard is not None:
            return index % self.shard[1] == self.shard[0] - 1
        return not self.rows or index + 1 in self.rows

    @property
    def part(self) -> str:
        """Name of the part of the cohort that this run converts; empty for all."""
        if self.shard is not None:
            return f"{self.shard[0]}-of-{self.shard[1]}"
        return "rows-" + "-".join(map(str, self.rows[:20])) if self.rows else ""


Mask = Literal["auto", "none"] | Path


def mask_of(text: str) -> Mask:
    """Convert the text of a sheet column or flag to the mask argument of the engine."""
    return text if text in ("auto", "none") else Path(text)  # type: ignore[return-value]


def to_convert(request: CohortRequest, row: Row, workers: int | None = None) -> ConvertRequest:
    """The conversion of a row, with absolute paths, since cluster workers have their own working directories."""
    model = Path(row.model)
    return ConvertRequest(
        slide=row.slide.absolute(),
        output=request.folder.absolute() / row.output,
        model=str(model.absolute()) if model.is_dir() else row.model,
        mpp=row.mpp,
        image=row.image,
        z=row.z,
        device=request.device,
        mask=mask_of(row.mask),
        workers=workers,
        config=request.config.convert,
        allow_upsampling=request.allow_upsampling,
        allow_virtual=request.allow_virtual,
        force_brightfield=request.force_brightfield,
        precision=request.precision,
        strict=request.strict,
    )


def named(row: Row, bundle: Bundle) -> Row:
    """The row with the name of its output."""
    return replace(row, output=f"{row.slide_id}.{bundle.stain_slug}.ome.tiff")
