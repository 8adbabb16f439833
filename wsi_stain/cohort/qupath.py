"""Script that creates a QuPath project of a cohort: each H&E with its virtual stain, with image types and names set.

QuPath stores image types as serialised Java objects (`data.qpdata`) that only QuPath can write. The script is therefore
in Groovy; it uses only the QuPath core and runs with or without the GUI.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from wsi_stain import __version__
from wsi_stain.cohort.files import Folder
from wsi_stain.cohort.request import Row
from wsi_stain.cohort.status import overview
from wsi_stain.errors import OutputError
from wsi_stain.files.atomic import atomic_write
from wsi_stain.files.notice import NOTICE, RESEARCH_USE
from wsi_stain.slide.dicom import series_in

SCRIPT = "qupath.groovy"
PROJECT = "qupath"
"""Folder of the project, next to the outputs."""

TEMPLATE = r"""// Creates a QuPath project of a cohort of virtual stains; written by wsi-stain {version}.
// {notice}. {use}.
//
//   in QuPath     Automate > Script editor, open this file, Run; then File > Project > Open project
//   command line  QuPath script {script}
//
// Re-run the script to add new images. If the folder was moved, change `root`, or pass --args /new/folder
import java.awt.image.BufferedImage
import qupath.lib.images.ImageData
import qupath.lib.images.servers.ImageServerProvider
import qupath.lib.projects.ProjectIO
import qupath.lib.projects.Projects

def given = binding.hasVariable('args') && args ? args[0] : null
def root = new File(given ?: {root})
def images = [  // path (relative to root, or absolute), name, type
{images}
]

def folder = new File(root, '{project}')
def file = new File(folder, 'project.qpproj')
folder.mkdirs()
def project = file.exists() ? ProjectIO.loadProject(file, BufferedImage.class)
                            : Projects.createProject(folder, BufferedImage.class)
def known = project.getImageList().collect {{ it.getImageName() }} as Set

for (image in images) {{
    if (image[1] in known)
        continue
    def path = new File(image[0])
    path = path.isAbsolute() ? path : new File(root, image[0]).toPath().normalize().toFile()
    def support = ImageServerProvider.getPreferredUriImageSupport(BufferedImage.class, path.toURI().toString())
    if (!path.exists() || support == null || support.getBuilders().isEmpty()) {{
        println 'Skipped, cannot be opened: ' + path
        continue
    }}
    def entry = project.addImage(support.getBuilders().get(0))
    def data = entry.readImageData()
    data.setImageType(ImageData.ImageType.valueOf(image[2]))
    entry.saveImageData(data)
    entry.setImageName(image[1])
    entry.setDescription(image[3])
    entry.setThumbnail(data.getServer().getDefaultThumbnail(0, 0))
    data.getServer().close()
    println 'Added ' + image[1]
}}
project.syncChanges()
println 'Project: ' + file
"""


def write_script(folder: Path) -> Path:
    """Write the script for the finished slides of a cohort.

    Raises:
        OutputError: the folder has no cohort, or none of its slides is done.
    """
    files, rows = Folder(folder), [row for row, _ in overview(folder).of("done")]
    if not rows:
        raise OutputError(f"no slide in {folder} is done; run the cohort first (wsi-stain cohort status {folder})")
    images = ",\n".join(f"  [{', '.join(map(literal, image))}]" for row in rows for image in _images(files, row))
    text = TEMPLATE.format(
        version=__version__,
        notice=NOTICE,
        use=RESEARCH_USE.upper(),
        script=SCRIPT,
        project=PROJECT,
        root=literal(str(folder.resolve())),
        images=images,
    )
    path = folder / SCRIPT
    atomic_write(path, text)
    return path


def literal(text: str) -> str:
    """A Groovy string in single quotes, in which `$` has no special meaning."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def _images(files: Folder, row: Row) -> Iterator[tuple[str, str, str, str]]:
    """Path, name, QuPath image type and description of the two images of a slide."""
    account = files.account(row)
    stain, model = account.get("stain", "stain"), account.get("model", row.model)
    yield _path(files, row), f"{row.slide_id} H&E", "BRIGHTFIELD_H_E", ""
    description = f"{NOTICE}: {stain} predicted by {model}. {RESEARCH_USE.upper()}."
    kind = "FLUORESCENCE" if account.get("channels") else "BRIGHTFIELD_H_DAB"
    yield row.output, f"{row.slide_id} {stain} (virtual)", kind, description


def _path(files: Folder, row: Row) -> str:
    """Path of the slide relative to the folder, so that both can be moved together."""
    slide = row.slide.resolve()
    if slide.is_dir():  # QuPath opens one instance of a DICOM series
        slide = next((series.levels[0] for series in series_in(slide) if series.levels), slide)
    try:
        return Path(os.path.relpath(slide, files.path.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return str(slide)
