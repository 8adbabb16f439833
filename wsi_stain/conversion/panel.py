"""Several stains of one slide: a panel. Each has an output, a certificate and a record of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from wsi_stain.cluster import ClusterConfig, open_cluster
from wsi_stain.config.loader import load
from wsi_stain.conversion.engine import ConversionResult, convert
from wsi_stain.conversion.job import Job
from wsi_stain.conversion.progress import Progress
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.conversion.survey import Survey
from wsi_stain.errors import ConfigError
from wsi_stain.model.bundle import Bundle

STAIN = "{stain}"
"""What `-o` must contain for several models: the stain takes its place."""


def requests_of(request: ConvertRequest, models: tuple[str, ...]) -> list[ConvertRequest]:
    """One request for each model.

    Args:
        request: its output, if it has one, must contain `{stain}` for several models.
        models: names or folders of bundles.

    Raises:
        ConfigError: a model is given twice, or two outputs would have one name.
        BundleError: a model cannot be used.
    """
    if len(models) == 1:
        return [replace(request, model=models[0])]
    outputs: dict[Path, str] = {}
    requests: list[ConvertRequest] = []
    for model in models:
        bundle = Bundle.open(model)
        path = request.output or Path(f"{request.slide.stem}.{STAIN}.ome.tiff")
        if STAIN not in path.name:
            raise ConfigError(f"-o is {path}: several models need a name with {STAIN}, for example x.{STAIN}.ome.tiff")
        output = path.with_name(path.name.replace(STAIN, bundle.stain_slug))
        if output in outputs:
            raise ConfigError(
                f"{outputs[output]} and {model} would both write {output}; convert one of them in another call, with -o"
            )
        outputs[output] = model
        requests.append(replace(request, model=model, output=output))
    return requests


def convert_panel(
    request: ConvertRequest, models: tuple[str, ...], progress: Callable[[Progress], None] | None = None
) -> Iterator[ConversionResult]:
    """Stain a slide with several models, one after the other; finished ones are already done, a killed one resumes.

    The slide is hashed and its tissue is found once. All models, slides and outputs are checked before the first tile
    is stained.

    Args:
        request: what to do; its model is ignored.
        models: names or folders of bundles, in the order of staining.
        progress: see `convert`.

    Raises:
        WsiStainError: a model, the slide or an output cannot be used, or a conversion failed.
    """
    requests = requests_of(request, models)
    if len(requests) > 1 and request.cluster is not None:
        with open_cluster(load(ClusterConfig, request.cluster)) as client:
            scheduler = client.scheduler
            assert scheduler is not None, "a started cluster has a scheduler"
            yield from convert_panel(replace(request, cluster=None, scheduler=scheduler.address), models, progress)
        return
    first: Survey | None = None
    surveys: list[Survey] = []
    for one in requests if len(requests) > 1 else ():
        survey = Survey.of(one, like=first)
        Job.of(survey)  # refuses a name that cannot be used
        first = first or survey
        surveys.append(survey)
    for index, one in enumerate(requests):
        yield convert(one, progress, survey=surveys[index] if surveys else None)
