"""`wsi-stain evaluate`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click


@click.command("evaluate")
@click.option("--model", default=None, help="Bundle: a name or a folder; the default model if not given.")
@click.option("--pairs", type=click.Path(path_type=Path), required=True, help="Folder or CSV of paired tiles.")
@click.option("--split", default="test", show_default=True, help="Which split to judge.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the figures as JSON.")
def command(model: str | None, pairs: Path, split: str, device: str, output: Path | None) -> None:
    """Compare a model with real stains and trivial baselines: a table with 95 % intervals.

    The unit of the bootstrap is the slide, or the field where all fields come from one slide.
    """
    import numpy as np

    from wsi_stain.bundle import DEFAULT, Bundle
    from wsi_stain.errors import OutputError
    from wsi_stain.eval.evaluate import evaluate, table
    from wsi_stain.train.data import find_pairs, load_pair

    if output is not None and output.exists():
        raise OutputError(f"{output} exists: choose another name, or remove it first")
    bundle = Bundle.open(model or DEFAULT)
    chosen = find_pairs(pairs, split)
    slides = [pair.slide_id for pair in chosen]
    groups = slides if len(set(slides)) > 1 else [pair.he.stem for pair in chosen]
    colour = np.mean([load_pair(pair)[1].mean((0, 1)) for pair in find_pairs(pairs, "train")], axis=0)
    rows = evaluate(
        bundle,
        [load_pair(pair) for pair in chosen],
        groups,
        mean_colour=colour,
        device=device,
        progress=lambda done, total: click.echo(f"{done}/{total} fields", err=True),
    )
    if output is not None:
        figures = {name: {m: dataclasses.asdict(e) for m, e in row.items()} for name, row in rows.items()}
        output.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(table(rows))
