"""What a cohort run is asked for: settings, the request, and one row of the sheet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from wsi_stain.config.convert import ConvertConfig, PrecisionChoice
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.errors import ConfigError
from wsi_stain.model.bundle import DEFAULT, Bundle


@dataclass(frozen=True, slots=True)
class CohortConfig:
    """Settings of `wsi-stain cohort` that have no flag of their own."""

    convert: ConvertConfig = field(default_factory=ConvertConfig)
    """Of every slide; the same keys as of `wsi-stain convert`."""
    retries: int = 2
    """How often a slide is tried again after a failure that may pass: a lost worker, a network file system."""
    retry_wait_s: float = 5.0
    """Pause before the first such retry; it doubles each time."""
    split_over: float = 4.0
    """Gigapixels at the model's scale from which a slide's blocks go to several workers."""
    stop_s: float = 5.0
    """How long workers may take to finish their blocks after Ctrl-C or SIGTERM; then they are ended."""

    def __post_init__(self) -> None:
        for name in ("retries", "retry_wait_s", "split_over", "stop_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must not be negative")


@dataclass(frozen=True, slots=True)
class Row:
    """One slide of a cohort."""

    line: int
    """In the sheet, its header being line 1; of a folder or glob, the place in the sorted list."""
    slide_id: str
    """Names the outputs; unique in the cohort."""
    slide: Path
    mpp: float | None = None
    """µm per px, where the sheet says so."""
    model: str = DEFAULT
    mask: str = "auto"
    """`auto`, `none`, or a GeoJSON file."""
    output: str = ""
    """Name of the virtual stain in the cohort's folder."""
    pixels: int = 0
    """Of the slide at the model's scale; 0 = not known yet."""


@dataclass(frozen=True, slots=True)
class CohortRequest:
    """What the user asks for; the fields are the flags of `wsi-stain cohort run`."""

    sheet: str
    """A CSV file, a folder of slides, or a glob."""
    folder: Path
    """Where outputs and the account go."""
    model: str = DEFAULT
    """Of rows that name none."""
    mpp: float | None = None
    """Of rows that name none."""
    mask: str = "auto"
    """Of rows that name none."""
    device: str = "auto"
    precision: PrecisionChoice = "auto"
    allow_upsampling: bool = False
    config: CohortConfig = field(default_factory=CohortConfig)
    cluster: Path | None = None
    """YAML of a cluster to start."""
    scheduler: str | None = None
    """Address of a Dask scheduler that runs already."""
    rows: tuple[int, ...] = ()
    """Only these slides of the sheet, counted from 1; all if empty."""
    only: tuple[int, int] | None = None
    """Only share I of N, (I, N): for arrays of jobs."""
    retry_failed: bool = False
    take_over: bool = False
    """Break locks that processes on other hosts left, which nobody here can prove dead."""

    log_lines: bool = False
    """Whether workers log as JSON lines."""

    def __post_init__(self) -> None:
        if self.only is not None and not 1 <= self.only[0] <= self.only[1]:
            raise ConfigError(f"--only is {self.only[0]}/{self.only[1]}: it must be I/N with I between 1 and N")
        if self.only is not None and self.rows:
            raise ConfigError("--only and --rows exclude each other: give one of them")
        if self.cluster is not None and self.scheduler is not None:
            raise ConfigError("--cluster and --scheduler exclude each other: give one of them")

    def is_chosen(self, index: int) -> bool:
        """Whether the row at this place, counted from 0, is to be done by this run."""
        if self.only is not None:
            return index % self.only[1] == self.only[0] - 1
        return not self.rows or index + 1 in self.rows

    @property
    def share(self) -> str:
        """Names the part of the cohort that this run does; empty for all."""
        if self.only is not None:
            return f"{self.only[0]}-of-{self.only[1]}"
        return "rows-" + "-".join(map(str, self.rows[:20])) if self.rows else ""


Mask = Literal["auto", "none"] | Path


def mask_of(text: str) -> Mask:
    """What a sheet's column or a flag says, as the engine wants it."""
    return text if text in ("auto", "none") else Path(text)  # type: ignore[return-value]


def to_convert(request: CohortRequest, row: Row, workers: int | None = None) -> ConvertRequest:
    """The conversion of a row: absolute paths, since a cluster's workers have working directories of their own."""
    model = Path(row.model)
    return ConvertRequest(
        slide=row.slide.absolute(),
        output=request.folder.absolute() / row.output,
        model=str(model.absolute()) if model.is_dir() else row.model,
        mpp=row.mpp,
        device=request.device,
        mask=mask_of(row.mask),
        workers=workers,
        config=request.config.convert,
        allow_upsampling=request.allow_upsampling,
        precision=request.precision,
    )


def named(row: Row, bundle: Bundle) -> Row:
    """The row with its output's name."""
    return replace(row, output=f"{row.slide_id}.{bundle.stain_slug}.ome.tiff")
