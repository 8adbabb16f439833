"""The canvas of a DICOM series: the blocks of an OME-TIFF, published as one instance per level in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from wsi_stain.errors import OutputError
from wsi_stain.files.atomic import replace_folder
from wsi_stain.geometry import Box
from wsi_stain.output import dicom
from wsi_stain.output.canvas import nothing
from wsi_stain.output.tiff_canvas import TiffCanvas


class DicomCanvas(TiffCanvas):
    """Painted blocks of a DICOM series, in `<output>.spool`; the output is a folder.

    canvas = DicomCanvas(spec)
    canvas.begin(fingerprint)
    for block in canvas.todo(blocks):
        canvas.put(block, paint(block), {})
    canvas.publish(facts)
    """

    ENCODING = dicom.DicomEncoding

    def publish(
        self, facts: Mapping[str, str], unreadable: Sequence[Box] = (), on_check: Callable[[], None] = nothing
    ) -> None:
        """Write the series under its temporary name, check it, then give it its final name.

        Raises:
            OutputError: the series fails its check.
        """
        self.finish()
        part, output = self.spec.part, self.spec.output
        self._discard(part)
        part.mkdir()
        dicom.write(part, self, self.metadata(facts, unreadable))
        on_check()
        errors = [problem for problem in dicom.problems(part) if problem.severity == "error"]
        if errors:
            message = "; ".join(f"rule {p.rule}: {p.message}" for p in errors)
            raise OutputError(f"{part} was written but fails its check ({message}); please report this")
        replace_folder(part, output)

    @staticmethod
    def _discard(part: Path) -> None:
        shutil.rmtree(part, ignore_errors=True)
