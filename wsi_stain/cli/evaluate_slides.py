"""`wsi-stain evaluate --slides`: a model on the whole slides of a case of `pairs make`."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import click

from wsi_stain.cli.progress import counted

STAINED = "virtual.ome.tiff"
"""Name of the virtual stain, of which only the canvas is made."""


def evaluate_slides(folder: Path, model: str, device: str, output: Path) -> str:
    """Compare a model with the real stain of a case's whole slides; writes the report, and returns the table.

    Only the blocks of the virtual stain under the compared fields are computed; they are kept beside the report until
    it is written, so that the same command resumes.
    """
    from wsi_stain import __version__
    from wsi_stain.config.convert import ConvertConfig, GridConfig
    from wsi_stain.evaluate import report
    from wsi_stain.evaluate.contenders import Contender
    from wsi_stain.evaluate.evaluate import evaluate
    from wsi_stain.evaluate.figures import BLOCKS_UM, MeasureSettings
    from wsi_stain.evaluate.slides import SlidePair, padded
    from wsi_stain.evaluate.tables import table
    from wsi_stain.model.bundle import Bundle
    from wsi_stain.pairing.case import open_case
    from wsi_stain.pairing.held import held_blocks
    from wsi_stain.pairing.resample import Warped
    from wsi_stain.slide.slide import MAX_GROWTH
    from wsi_stain.view.virtual import virtual_slide

    bundle = Bundle.open(model)
    config = ConvertConfig(grid=GridConfig(block=1024), certificate=False, check_input=False)
    with open_case(folder) as case:
        output.mkdir(parents=True, exist_ok=True)
        mpp = bundle.mpp or case.he.mpp
        for slide in (case.he, case.ihc):
            if slide.mpp > mpp * MAX_GROWTH:
                click.echo(
                    f"{slide.path.name} has {slide.mpp:g} µm/px and is enlarged to the model's {mpp:g}: the figures "
                    "hold for enlarged tissue only",
                    err=True,
                )
        warped = Warped(case.ihc.at(mpp, allow_upsampling=True), case.transform, mpp)
        click.echo("looking for blocks that can be compared", err=True)
        side_um = round(BLOCKS_UM[0] / mpp) * mpp
        held = held_blocks(case, side_um)
        pair = SlidePair(case.he.at(mpp, allow_upsampling=True).read, lambda box: warped.read(box)[0], held, mpp)
        boxes = pair.boxes()
        fields, unit = pair.fields()
        ruler = MeasureSettings(mpp, bundle.background_colour)
        settings = report.ReportSettings(str(folder), "whole slides", bundle.stain, unit, ruler, __version__, pair)
        request: dict[str, Any] = {
            "mpp": case.he.mpp,
            "output": output / STAINED,
            "config": config,
            "allow_upsampling": True,
        }
        with virtual_slide(case.he.path, model=model, device=device, **request) as virtual:
            stain = padded(partial(virtual.read, 0), virtual.levels[0].size)
            about = {"version": bundle.version, "sha256": bundle.sha256}
            contenders = [
                Contender(bundle.name, lambda view: stain(boxes[view.name]), about=about),
                Contender("the H&E itself", lambda view: view.he, "baseline"),
            ]
            result = evaluate(contenders, fields, ruler=ruler, progress=counted("fields"))
            report.write(output, result, settings)
    shutil.rmtree(output / f"{STAINED}.spool", ignore_errors=True)
    click.echo(f"{output / report.REPORT_HTML}", err=True)
    return table(result.rows)
