"""`wsi-stain evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_stain.cli.progress import counted

if TYPE_CHECKING:
    import numpy as np

    from wsi_stain.evaluate.contenders import Contender
    from wsi_stain.evaluate.evaluate import Field
    from wsi_stain.evaluate.figures import MeasureSettings
    from wsi_stain.model.bundle import Bundle
    from wsi_stain.pairs.pair import Pair


@click.command("evaluate")
@click.option(
    "--model",
    help="Model bundle: a name or a folder. [default: the shipped model, unless another option names a contender]",
)
@click.option(
    "--run", type=click.Path(path_type=Path), help="Evaluate the generator of a training run that is not packed yet."
)
@click.option(
    "--against",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Evaluate images of any tool in a folder (png, jpg or tif, named like the H&E files); may be repeated.",
)
@click.option(
    "--regressor", type=click.Path(path_type=Path), help="Evaluate a run that only predicts the DAB-positive share."
)
@click.option("--pairs", type=click.Path(path_type=Path), help="Folder or CSV of paired tiles.")
@click.option(
    "--slides",
    type=click.Path(path_type=Path),
    help="Instead of --pairs: a case folder of `pairs make`, whose whole slides are compared; needs --model and -o.",
)
@click.option("--split", default="test", show_default=True, help="Split to evaluate.")
@click.option("--mpp", type=float, help="Pixel size of the pairs in µm. [default: the model's]")
@click.option(
    "--inception",
    type=click.Path(path_type=Path),
    help="Weights of Inception (safetensors, keys as in torch-fidelity); adds FID and KID.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for metrics.json, table.md, report.html.")
def command(
    model: str | None,
    run: Path | None,
    against: tuple[Path, ...],
    regressor: Path | None,
    pairs: Path | None,
    slides: Path | None,
    split: str,
    mpp: float | None,
    inception: Path | None,
    device: str,
    output: Path | None,
) -> None:
    """Compare models with real stains and trivial baselines; print a table with 95 % intervals, and write a report.

    \b
    wsi-stain evaluate --model models/he2mine --pairs my/pairs -o reports/he2mine
    wsi-stain evaluate --model models/he2mine --against other/tool/images --pairs my/pairs -o reports/both
    wsi-stain evaluate --model models/he2mine --slides pairs/case1 -o reports/case1

    The unit of the bootstrap is the patient, if the table states it, or else the slide. If all fields come from one
    slide, it is a block of 2 × 2 neighbouring fields, or a single field if the positions are unknown.
    """
    from wsi_stain import __version__
    from wsi_stain.errors import ConfigError
    from wsi_stain.evaluate import report
    from wsi_stain.evaluate.contenders import baselines, from_bundle, from_folder
    from wsi_stain.evaluate.evaluate import evaluate
    from wsi_stain.evaluate.tables import table
    from wsi_stain.pairs.pair import find_pairs

    if output is not None:
        report.refuse_used(output)
    if slides is not None:
        if model is None or output is None or pairs or run or against or regressor or inception or mpp:
            raise ConfigError(
                "--slides needs --model and -o, and takes --device, but no other option; remove the others"
            )
        from wsi_stain.cli.evaluate_slides import evaluate_slides

        click.echo(evaluate_slides(slides, model, device, output))
        return
    if pairs is None:
        raise ConfigError("nothing to evaluate on: pass --pairs, or --slides with a case of `pairs make`")
    selection = find_pairs(pairs, split)
    bundles = _bundles(model, run, default=not against and regressor is None)
    ruler = _ruler(bundles, regressor, mpp)
    contenders = [from_bundle(bundle, device) for bundle in bundles]
    contenders += [from_folder(folder, [pair.he.stem for pair in selection]) for folder in against]
    contenders += [_regressor(regressor, device)] if regressor is not None else []
    features = _features(inception, device)
    contenders = _distinct([*contenders, *baselines(_mean_colour(pairs))])
    fields, unit = _fields(selection)
    result = evaluate(contenders, fields, ruler=ruler, features=features, progress=counted("fields"))
    if output is not None:
        stain = bundles[0].stain if bundles else "virtual stain"
        report.write(output, result, report.ReportSettings(str(pairs), split, stain, unit, ruler, __version__))
        click.echo(f"{output / report.REPORT_HTML}", err=True)
    click.echo(table(result.rows))


def _bundles(model: str | None, run: Path | None, *, default: bool) -> list[Bundle]:
    from wsi_stain.model.bundle import DEFAULT, Bundle
    from wsi_stain.model.training_run import TrainingRun

    if model is None and run is None and default:
        model = DEFAULT
    bundles = [] if model is None else [Bundle.open(model)]
    return bundles if run is None else [*bundles, TrainingRun.open(run, "ceff").as_bundle()]


def _ruler(bundles: list[Bundle], regressor: Path | None, mpp: float | None) -> MeasureSettings:
    """The scale and the background colour that the evaluated models share."""
    from wsi_stain.errors import ConfigError
    from wsi_stain.evaluate.figures import MeasureSettings
    from wsi_stain.model.training_run import TrainingRun

    known = [(bundle.name, bundle.mpp, bundle.background_colour) for bundle in bundles]
    if regressor is not None:
        config = TrainingRun.open(regressor, "unet").config
        known.append((str(regressor), config.input.mpp, config.output.background_colour))
    scales = {scale: name for name, scale, _ in known if scale is not None}
    if mpp is None and len(scales) > 1:
        both = " and ".join(f"{name} at {scale} µm/px" for scale, name in scales.items())
        raise ConfigError(f"{both} cannot be evaluated on the same pairs: evaluate them one by one, or pass --mpp")
    scale = mpp if mpp is not None else next(iter(scales), None)
    if scale is None or scale <= 0:
        raise ConfigError(
            f"the pixel size of the pairs is {scale} µm/px: it must be above 0; pass --mpp, for example --mpp 0.5"
        )
    return MeasureSettings(scale, known[0][2]) if known else MeasureSettings(scale)


def _regressor(run: Path, device: str) -> Contender:
    from wsi_stain.evaluate.contenders import Contender
    from wsi_stain.train.regressor import load_regressor

    share = load_regressor(run, device)
    name = f"{run.resolve().name} (DAB+ only)"
    return Contender(name, lambda view: share(view.he), "regressor", {"folder": str(run)})


def _distinct(contenders: list[Contender]) -> list[Contender]:
    """The same contenders, with numbers added to equal names."""
    import dataclasses

    by_name: dict[str, Contender] = {}
    for contender in contenders:
        name, n = contender.name, 1
        while name in by_name:
            n += 1
            name = f"{contender.name} ({n})"
        by_name[name] = dataclasses.replace(contender, name=name)
    return list(by_name.values())


def _features(inception: Path | None, device: str) -> Callable[[np.ndarray], np.ndarray] | None:
    if inception is None:
        return None
    from wsi_stain.evaluate.fid import inception as load_inception
    from wsi_stain.nn.inference import pick_device

    return load_inception(inception, pick_device(device))


def _fields(selection: list[Pair]) -> tuple[list[Field], str]:
    """The fields with their bootstrap groups, and the name of the group unit."""
    import functools

    from wsi_stain.evaluate.evaluate import Field
    from wsi_stain.evaluate.groups import FieldOrigin, group
    from wsi_stain.pairs.pair import read_pair

    side = min(read_pair(selection[0])[0].shape[:2])
    labels, unit = group([FieldOrigin(p.he.stem, p.slide_id, p.x, p.y, p.patient_id) for p in selection], side)
    fields = [
        Field(p.he.stem, label, functools.partial(read_pair, p), p.stratum, p.patient_id)
        for p, label in zip(selection, labels, strict=True)
    ]
    return fields, unit


def _mean_colour(source: Path) -> np.ndarray | None:
    """Mean colour of the stain in the training split; None, with a printed note, if that split is empty."""
    from wsi_stain.evaluate.contenders import mean_colour
    from wsi_stain.pairs.pair import find_pairs, read_pair

    training = [pair for pair in find_pairs(source) if pair.split == "train"]
    if not training:
        click.echo(f"{source} has no training split; the baseline of its mean stain colour is omitted", err=True)
        return None
    show = counted("training pairs, for their mean colour")

    def images() -> Iterator[np.ndarray]:
        for i, pair in enumerate(training):
            yield read_pair(pair)[1]
            show(i + 1, len(training))

    return mean_colour(images())
