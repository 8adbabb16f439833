"""Every file of a slide: several formats keep the pixels in other files than the one that is named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from wsi_stain.slide.dicom import is_dicom, series_in, series_of

ZARR_MARKERS = ("zarr.json", ".zattrs", ".zgroup")


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((folder / marker).is_file() for marker in ZARR_MARKERS)


def files_of(slide: Path) -> list[Path]:
    """The files that a reader of the slide opens, in a fixed order; the path itself if it is the only one.

    MIRAX and Olympus VSI keep the pixels in a folder beside the file, Hamamatsu VMS and VMU in files that it names,
    a DICOM series in one file per level, and an OME-Zarr in one file per chunk.
    """
    if slide.is_dir():
        series = [] if is_zarr(slide) else [path for one in series_in(slide) for path in one.files]
        return series or _all_in(slide)
    target = slide.resolve()  # the parts are beside the file to which a link points
    ending = slide.suffix.lower()
    parts: list[Path] = []
    if ending == ".mrxs":
        parts = _all_in(target.with_suffix(""))
    elif ending == ".vsi":
        parts = _all_in(target.with_name(f"_{target.stem}_"))
    elif ending in (".vms", ".vmu"):
        parts = sorted(set(_named_in(target)))
    elif is_dicom(slide):
        one = series_of(target)
        return list(one.files) if one else [slide]
    return [slide, *parts]


def digest(slide: Path) -> tuple[str, int]:
    """SHA-256 and bytes of the content of all files of a slide, one after the other.

    The names of an OME-Zarr's files count too: its chunks may be equal, and change places.
    """
    total, size, is_named = hashlib.sha256(), 0, is_zarr(slide)
    for path in files_of(slide):
        if is_named:
            total.update(path.relative_to(slide).as_posix().encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: total)
        size += path.stat().st_size
    return total.hexdigest(), size


def size_of(slide: Path) -> int:
    """Bytes of all files of a slide."""
    return sum(path.stat().st_size for path in files_of(slide))


def stamp(slide: Path) -> str:
    """A hash of the names, sizes and times of all files of a slide; cheap, and equal as long as no file is touched.

    Empty if a file is missing.
    """
    try:
        facts = [(path.name, stat.st_size, stat.st_mtime_ns) for path in files_of(slide) for stat in [path.stat()]]
    except OSError:
        return ""
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()


def _all_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _named_in(index: Path) -> Iterator[Path]:
    """The existing files that the lines `key=value` of a Hamamatsu index name."""
    for line in index.read_text(encoding="latin-1").splitlines():
        name = line.partition("=")[2].strip()
        path = index.parent / name
        if name and "\0" not in name and path.is_file():
            yield path
