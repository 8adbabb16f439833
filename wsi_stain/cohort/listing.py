"""The slides in a folder or a glob: files by their ending, DICOM series by their content, and no virtual stains."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from wsi_stain.output.virtual import virtual_stain
from wsi_stain.slide.dicom import Series, grouped, is_dicom, series_in

SLIDE_ENDINGS = frozenset(
    ("bif", "czi", "dcm", "jpeg", "jpg", "mrxs", "ndpi", "png", "scn", "svs", "svslide", "tif", "tiff", "vms", "vmu")
)
"""File name endings of slides in a folder; a sheet or a glob may contain any file."""

Named = tuple[str, Path]
"""Name and path of a slide."""

log = logging.getLogger(__name__)


def in_folder(folder: Path, *, with_virtual: bool = False) -> list[Named]:
    """The slides in a folder, sorted by path: its files with a known ending, and all DICOM series below it.

    Args:
        folder: where to look.
        with_virtual: whether virtual stains count as slides.
    """
    series = series_in(folder)
    parts = {path for one in series for path in one.files}
    files = [
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower()[1:] in SLIDE_ENDINGS
    ]
    files = [path for path in files if path not in parts]
    slides = _unique(_series(series), folder)
    return _sorted(_chosen([*((path.stem, path) for path in files), *slides], with_virtual=with_virtual))


def among(paths: list[Path], *, with_virtual: bool = False) -> list[Named]:
    """The slides among paths that a glob gives; the instances of a DICOM series are one slide."""
    below = {path: series_in(path) for path in paths if path.is_dir()}
    instances = [path for path in paths if path.is_file() and is_dicom(path)]
    slides = [slide for series in below.values() for slide in _series(series)]
    slides += [(one.levels[0].stem, one.levels[0]) for one in grouped(instances) if one.levels]
    others = [path for path in paths if path not in instances and not below.get(path)]
    named = [*((path.stem, path) for path in others), *_unique(slides, Path())]
    return _sorted(_chosen(named, with_virtual=with_virtual))


def _chosen(slides: list[Named], *, with_virtual: bool) -> list[Named]:
    """The slides without virtual stains, which are counted in a warning."""
    virtual = set() if with_virtual else {path for _, path in slides if virtual_stain(path) is not None}
    if virtual:
        first, more = min(path.name for path in virtual), ", …" if len(virtual) > 1 else ""
        log.warning("left out %d virtual stains (%s%s); --allow-virtual includes them", len(virtual), first, more)
    return [slide for slide in slides if slide[1] not in virtual]


def _series(series: list[Series]) -> list[Named]:
    """Each series with pixels: by its folder if that holds no other, else by its largest instance."""
    slides = list({one.uid: one for one in series if one.levels}.values())
    folders = Counter(folder for one in slides for folder in {path.parent for path in one.files})
    named: list[Named] = []
    for one in slides:
        level = one.levels[0]
        is_alone = folders[level.parent] == 1 and {path.parent for path in one.files} == {level.parent}
        named.append((level.parent.resolve().name, level.parent) if is_alone else (level.stem, level))
    return named


def _unique(slides: list[Named], root: Path) -> list[Named]:
    """The slides; those of equal names get names made of the folders below `root`."""
    counts = Counter(name for name, _ in slides)
    return [(name if counts[name] == 1 else _long_name(path, root), path) for name, path in slides]


def _long_name(path: Path, root: Path) -> str:
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    return "-".join(part for part in relative.parts if part != relative.anchor)


def _sorted(slides: list[Named]) -> list[Named]:
    return sorted(slides, key=lambda slide: slide[1])
