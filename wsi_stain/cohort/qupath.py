"""A script for QuPath that makes a project of a cohort: each H&E with its virtual stain, types and names set.

A project's image types lie in files of serialised Java objects (`data.qpdata`) that only QuPath can write, so QuPath
does it: the script is Groovy and uses QuPath's core alone, in its window or without one.
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

SCRIPT = "qupath.groovy"
PROJECT = "qupath"
"""Folder of the project beside the outputs."""

TEMPLATE = r"""// Makes a QuPath project of a cohort of virtual stains; written by wsi-stain {version}.
// VIRTUAL STAIN - NOT A PHYSICAL IHC. RESEARCH USE ONLY.
//
//   in QuPath     Automate > Script editor, open this file, Run; then File > Project > Open project
//   without it    QuPath script {script}
//
// Run again it adds what is new. If the folder was moved, change `root`, or give it: --args /new/folder
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
        println 'Left out, cannot be opened: ' + path
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
        OutputError: there is no cohort, or none of its slides is done.
    """
    files, found = Folder(folder), [row for row, _ in overview(folder).of("done")]
    if not found:
        raise OutputError(f"no slide in {folder} is done: run the cohort first (wsi-stain cohort status {folder})")
    images = ",\n".join(f"  [{', '.join(map(literal, image))}]" for row in found for image in _images(files, row))
    text = TEMPLATE.format(
        version=__version__, script=SCRIPT, project=PROJECT, root=literal(str(folder.resolve())), images=images
    )
    path = folder / SCRIPT
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return path


def literal(text: str) -> str:
    """A string in Groovy's single quotes, which leave `$` alone."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def _images(files: Folder, row: Row) -> Iterator[tuple[str, str, str, str]]:
    """Path, name, QuPath's image type and description of a slide's two images."""
    account = files.account(row)
    stain, model = account.get("stain", "stain"), account.get("model", row.model)
    yield _path(files, row), f"{row.slide_id} H&E", "BRIGHTFIELD_H_E", ""
    said = f"VIRTUAL STAIN - NOT A PHYSICAL IHC: {stain} predicted by {model}. RESEARCH USE ONLY."
    yield row.output, f"{row.slide_id} {stain} (virtual)", "BRIGHTFIELD_H_DAB", said


def _path(files: Folder, row: Row) -> str:
    """Of the slide, relative to the folder, so that both may be moved together."""
    slide = row.slide.resolve()
    if slide.is_dir():  # QuPath opens one instance of a DICOM series
        slide = max(slide.glob("*.dcm"), key=lambda path: path.stat().st_size, default=slide)
    try:
        return Path(os.path.relpath(slide, files.path.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return str(slide)
