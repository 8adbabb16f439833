"""Packs a training run into a bundle with a model card, and checks a bundle before it is shipped.

The tile tolerance of a bundle is the measurement of `tile_tolerance`, with a margin.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from wsi_stain.config.convert import Precision
from wsi_stain.config.loader import dump
from wsi_stain.config.model import BundleConfig, BundleWeights, TileTolerance
from wsi_stain.errors import BundleError, WsiStainError
from wsi_stain.files.atomic import atomic_write, replacing
from wsi_stain.files.notice import RESEARCH_USE
from wsi_stain.model.bundle import SPEC, WEIGHTS, Bundle, TileGenerator, sha256_of
from wsi_stain.model.card import TO_COMPLETE
from wsi_stain.model.facts import calibrated
from wsi_stain.model.tile_tolerance import MARGIN, field, in_words, measure, tolerance
from wsi_stain.model.training_run import TrainingRun
from wsi_stain.model.trust import of_training, write_trust
from wsi_stain.pairs.pair import evenly_spread, find_pairs, read_pair

log = logging.getLogger(__name__)

RESEARCH_ONLY = RESEARCH_USE.upper()
OF_THE_MACHINE = ("device", "threads", "workers")
"""Training settings that do not affect the model."""
QUICK_PX = 128
"""Half the side of the tile that a quick check stains."""
MOST_PAIRS = 500
"""Pairs whose H&E is measured."""
PACKED: Precision = "bf16"
"""Precision in which it is measured: the lowest that any device selects, so that it holds on all devices."""
_SPDX = re.compile(r"\(*[\w.+:-]+\)*( (AND|OR|WITH) \(*[\w.+:-]+\)*)*")


def pack(run: Path, folder: Path, *, version: str = "1.0.0", licence: str = "Apache-2.0") -> Bundle:
    """Pack a training run's averaged generator as a bundle: half-precision weights, hash, tile tolerance, card.

    Args:
        run: folder of `wsi-stain train`.
        folder: of the new bundle; its name is the bundle's name. An existing card is kept.
        version: of the bundle.
        licence: SPDX expression for the weights.

    Raises:
        TrainingError: the run has no weights yet, is damaged, or its network does not stain.
        BundleError: the folder already contains a bundle, or the run's tile and overlap do not suit the network.
    """
    from wsi_stain.nn.inference import save_half

    training = TrainingRun.open(run, "ceff")
    for name in (SPEC, WEIGHTS):
        if (folder / name).exists():
            raise BundleError(f"{folder} already contains a bundle ({name}); choose another folder, or remove it first")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS, sole=True) as part:
        save_half(training.weights, part)
        spec = training.bundle_config(folder.resolve().name, version, part, licence)
        measured = _measure(Bundle(spec, folder))
    spec = dataclasses.replace(
        spec, weights=BundleWeights(WEIGHTS, sha256_of(folder / WEIGHTS)), tile_tolerance=tolerance(measured)
    )
    if not (folder / spec.card).exists():
        atomic_write(folder / spec.card, _card(spec, training, measured))
    _write_training(folder, training)
    atomic_write(folder / SPEC, yaml.safe_dump(dump(spec), sort_keys=False, allow_unicode=True))
    return Bundle.open(folder)


def _write_training(folder: Path, training: TrainingRun) -> None:
    """Write what the training tiles look like, if the pairs are still there; without them the bundle states nothing."""
    source, mpp = training.config.pairs, training.config.input.mpp
    try:
        images = [read_pair(pair)[0] for pair in evenly_spread(find_pairs(source, "train"), MOST_PAIRS)]
        write_trust(folder, of_training(images, mpp or 1.0))
    except (WsiStainError, OSError) as err:
        log.warning("the bundle does not state what its training tiles look like: %s", err)


def check(folder: Path | str, *, tiles: bool = True) -> list[str]:
    """The problems of a bundle, as sentences; empty if it can be shipped.

    Opens it (hash, network, finite weights), reads its card and licence, stains a tile alone and in a batch (shape,
    determinism), and measures the difference between tiles and one pass, in the precision of `convert` on this CPU.

    Args:
        folder: of the bundle, or the name of a shipped one.
        tiles: also measure the tiles, which costs about as much as staining eight tiles; without it, a small tile is
            stained.
    """
    try:
        bundle = Bundle.open(folder)
        generator = bundle.generator("cpu", precision="auto")
    except WsiStainError as err:
        return [str(err)]
    problems = _check_card(bundle) + _check_weights(bundle)
    if misfit := _misfit(bundle, generator):
        return [*problems, misfit]
    side = bundle.tile if tiles else min(bundle.tile, 2 * max(generator.multiple, QUICK_PX))
    defects = _check_tile(bundle, generator, side)
    if defects or not tiles:
        return problems + defects
    return problems + _check_tolerance(bundle, generator)


def _measure(bundle: Bundle) -> TileTolerance:
    generator = bundle.generator("cpu", precision=PACKED)
    if misfit := _misfit(bundle, generator):
        raise BundleError(f"{misfit}; set input.tile and input.overlap in the config.yaml of the run")
    return measure(bundle, generator)


def _check_card(bundle: Bundle) -> list[str]:
    if bundle.card_path is None:
        return []
    licence, limits = bundle.config.licence, bundle.config.tile_tolerance
    problems = []
    if not _SPDX.fullmatch(licence):
        problems.append(f"bundle.yaml has the licence {licence!r}; it must be an SPDX expression such as Apache-2.0")
    if not bundle.card_path.is_file():
        return [*problems, f"{bundle.card_path.name} is missing; write it"]
    text = bundle.card_path.read_text(encoding="utf-8")
    if bundle.version not in text.partition("\n")[0]:
        problems.append(
            f"the first line of the card does not name the version of bundle.yaml, {bundle.version}; add it"
        )
    if RESEARCH_ONLY not in text:
        problems.append(f"the card does not contain {RESEARCH_ONLY}; add it")
    if licence not in text:
        problems.append(f"the card does not contain the licence of bundle.yaml, {licence}; add it")
    if limits and in_words(limits) not in " ".join(text.split()):
        problems.append(f"the card lacks the tile tolerance of bundle.yaml; add {in_words(limits)!r}")
    if TO_COMPLETE in text:
        problems.append(f"the card still has parts marked {TO_COMPLETE}")
    return problems


def _check_weights(bundle: Bundle) -> list[str]:
    if bundle.config.weights is None or bundle.weights_path.suffix != ".safetensors":
        return []
    from safetensors.torch import load_file

    bad = sorted(key for key, tensor in load_file(bundle.weights_path).items() if not tensor.isfinite().all())
    return [f"the weights contain non-finite numbers, first in {bad[0]}; train again"] if bad else []


def _misfit(bundle: Bundle, generator: TileGenerator) -> str:
    """The reason why tile and overlap do not suit network and engine; empty if they do."""
    tile, overlap, multiple = bundle.tile, bundle.overlap, generator.multiple
    if tile % multiple or overlap % multiple:
        return f"tile {tile} and overlap {overlap} must be multiples of {multiple} px"
    if tile < 1 or not 0 <= 2 * overlap <= tile:
        return f"overlap {overlap} must be between 0 and half of tile {tile}"
    return ""


def _check_tile(bundle: Bundle, generator: TileGenerator, side: int) -> list[str]:
    tile = field(bundle, side)
    alone = generator(tile[None])
    expected = (1, *tile.shape[:2], len(bundle.background))
    if alone.shape != expected or alone.dtype != np.uint8:
        return [f"the generator returns {alone.dtype} {alone.shape} for uint8 {(1, *tile.shape)}"]
    in_batch = generator(np.stack([255 - tile, tile]))
    if np.array_equal(alone[0], in_batch[1]):
        return []
    return ["the same tile gives different pixels when stained alone and in a batch with another tile"]


def _check_tolerance(bundle: Bundle, generator: TileGenerator) -> list[str]:
    limits = bundle.config.tile_tolerance
    is_graph = bundle.config.network is not None and bundle.config.network.kind == "onnx"
    if limits is None and (bundle.is_pointwise or is_graph):  # some graphs take tiles of one size only
        return []
    if bundle.has_tile_statistics:
        with calibrated(bundle, "auto") as frozen:
            measured = measure(bundle, frozen)
    else:
        measured = measure(bundle, generator)
    if limits is None:
        new = tolerance(measured)
        return [
            f"bundle.yaml has no tile_tolerance (measured against one pass: {in_words(measured)}); pack the run "
            f"again, or add tile_tolerance: {{mean: {new.mean:g}, p99: {new.p99:g}, max: {new.max:g}}}"
        ]
    if all(a <= b for a, b in zip(dump(measured).values(), dump(limits).values(), strict=True)):
        return []
    return [
        f"tiles differ from one pass by {in_words(measured)}, but bundle.yaml allows {in_words(limits)}; "
        "enlarge input.overlap, or pack the run again"
    ]


def _settings(config: Any) -> dict[str, Any]:
    """A training's settings without paths and machine-specific values."""
    settings: dict[str, Any] = {}
    for name, plain in dump(config).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            settings[name] = _settings(value)
        elif not isinstance(value, Path) and name not in OF_THE_MACHINE:
            settings[name] = plain
    return settings


def _card(spec: BundleConfig, training: TrainingRun, measured: TileTolerance) -> str:
    assert spec.tile_tolerance, "a packed bundle has a tile tolerance"
    source, config = spec.input, training.config
    network = f"{spec.generator.kind}, width {spec.generator.channels}, {spec.generator.blocks} blocks"
    scale = f"{source.mpp} µm/px" if source.mpp else "the slide's own µm/px"
    images = "crops (number unknown)" if training.images is None else f"{training.images:,} crops"
    settings = yaml.safe_dump(_settings(config), sort_keys=False, allow_unicode=True).strip()
    return f"""# {spec.name} {spec.version}

**{RESEARCH_ONLY}.** A virtual stain is a prediction from H&E, not a physical {spec.output.stain}. Not for diagnosis.

| | |
|---|---|
| stain | {spec.output.stain} from {source.stain} at {scale} |
| network | {network}; {training.parameters:,} weights in float16 |
| training | {images} of {config.crop}² px, batch {config.schedule.batch}, seed {config.seed} |
| tiles against one pass | differ by at most {in_words(spec.tile_tolerance)} |
| licence of the weights | {spec.licence} |

## Data and splits

{TO_COMPLETE}: source, licence, organs, slides, patients, how the pairs were registered, splits.

## Training

{TO_COMPLETE}: details that the settings do not contain.

```yaml
{settings}
```

## Held-out figures

{TO_COMPLETE}: the table of `wsi-stain evaluate` on the test split, with the baselines and intervals.

## Tiles

Blended tiles of {source.tile} px with an overlap of {source.overlap} px differ from one pass over the same field of
procedural histology by: {in_words(measured)}. The tile tolerance of the bundle is {MARGIN:g} times that, rounded up;
`wsi-stain models check` repeats the measurement.

## Known failures

{TO_COMPLETE}: observed failures; organs, scanners and artefacts that are not in the training data.

## Intended use

{TO_COMPLETE}
"""
