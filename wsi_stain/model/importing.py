"""Makes a bundle of somebody else's generator: `import_model`.

sandbox     the file is opened in another process: what it holds, and that it runs
weights     safetensors with our names, or the ONNX file as it is
measure     agreement with the source, reach, tiles against one pass, speed, background
write       bundle.yaml, card.md
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from wsi_stain.config.loader import dump, load, read_mapping
from wsi_stain.config.model import (
    BundleConfig,
    BundleInput,
    BundleOutput,
    BundleWeights,
    GeneratorConfig,
    TileTolerance,
)
from wsi_stain.config.network import FACTS, KIND_MULTIPLES, TORCH_KINDS, ImportConfig, NetworkConfig
from wsi_stain.errors import BundleError, ConfigError
from wsi_stain.files.atomic import atomic_write, replacing
from wsi_stain.model import facts, sandbox
from wsi_stain.model.bioimageio_tensors import TestTensors
from wsi_stain.model.bundle import SPEC, WEIGHTS, Bundle, TileGenerator, sha256_of
from wsi_stain.model.card import imported_card
from wsi_stain.model.tile_tolerance import measure, tolerance

log = logging.getLogger(__name__)

GRAPH = "generator.onnx"
LEAST_DB = 60.0
"""PSNR that a bundle must have against its source network: at most one byte in fifteen differs, by one."""


def settings(
    given: Mapping[str, Any], file: Path | None = None, stated: Mapping[str, Any] | None = None
) -> ImportConfig:
    """The settings of an import: a YAML file, and keys that replace its.

    Args:
        given: keys that were passed.
        file: with more of them.
        stated: what the rdf.yaml of a model folder states; the others replace it (`bioimageio_import`).

    Raises:
        ConfigError: facts that the weight file does not state are missing, or a value is invalid.
    """
    merged = {**(stated or {}), **(read_mapping(file) if file else {}), **given}
    if multiple := KIND_MULTIPLES.get(merged.get("kind", "")):
        merged.setdefault("multiple", multiple)
    missing = [f"{key} ({meaning})" for key, meaning in FACTS.items() if key not in merged]
    if missing:
        options = ", ".join(f"--{key.replace('_', '-')}" for key in FACTS if key not in merged)
        source = "the weight file" if stated is None else "rdf.yaml"
        raise ConfigError(f"{source} does not state {', '.join(missing)}; pass {options}")
    return load(ImportConfig, merged)


def import_model(weights: Path, folder: Path, config: ImportConfig, tensors: TestTensors | None = None) -> Bundle:
    """Make a bundle of a weight file.

    Args:
        weights: a state dict (torch or safetensors), or an ONNX file.
        folder: of the new bundle; its name is the bundle's name. An existing card is kept.
        config: what the file does not state.
        tensors: what the network must make of an image, if that is known.

    Raises:
        BundleError: the file is refused, does not fit the kind or the tensors, or the folder already contains a bundle.
    """
    if not weights.is_file():
        raise BundleError(f"{weights} does not exist or is not a file; pass a weight file")
    name = WEIGHTS if config.kind in TORCH_KINDS else GRAPH
    for file in (SPEC, name):
        if (folder / file).exists():
            raise BundleError(f"{folder} already contains a bundle ({file}); choose another folder, or remove it first")
    with TemporaryDirectory() as scratch:
        network = _opened(weights, Path(scratch), config)
        source = Path(scratch, sandbox.TENSORS) if config.kind in TORCH_KINDS else weights
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / name, sole=True) as part:
            shutil.copyfile(source, part)
            spec = _spec(folder, part, network, config)
            if tensors is not None:
                _compare(Bundle(spec, folder), tensors)
            spec = _measured(spec, folder, config)
    spec = dataclasses.replace(spec, weights=BundleWeights(name, sha256_of(folder / name)))
    if not (folder / spec.card).exists():
        atomic_write(folder / spec.card, imported_card(spec, weights.name))
    atomic_write(folder / SPEC, yaml.safe_dump(_plain(spec), sort_keys=False, allow_unicode=True))
    return Bundle.open(folder)


def _opened(weights: Path, scratch: Path, config: ImportConfig) -> NetworkConfig:
    """The network in the file; its tensors, if it is a state dict, are in the scratch folder."""
    network = NetworkConfig(
        kind=config.kind,
        values_in=config.values_in,
        values_out=config.values_out,
        colours=config.colours,
        multiple=config.multiple,
        norm="none",
        output=config.output,
        fluorescence=bool(config.channels),
    )
    kind = "state_dict" if config.kind in TORCH_KINDS else "onnx"
    task = sandbox.Task(kind, str(weights.resolve()), network, config.tile, str(scratch))
    result = sandbox.run(task, config.limit_s)
    network = load(NetworkConfig, result["network"])
    named = len(config.channels)
    if named and named != network.outputs:
        raise BundleError(f"{weights} has {network.outputs} outputs, but --channels names {named}")
    if not named and network.outputs not in (1, 3):
        raise BundleError(
            f"{weights} has {network.outputs} outputs, neither colours (3) nor grey (1); name them with --channels, "
            "for example --channels DAPI,CD3,CD8=00FF00"
        )
    return network


def _spec(folder: Path, weights: Path, network: NetworkConfig, config: ImportConfig) -> BundleConfig:
    return BundleConfig(
        name=folder.resolve().name,
        version=config.version,
        generator=GeneratorConfig(kind="imported"),
        input=BundleInput(config.input_stain, config.mpp, config.tile, config.overlap or 0),
        output=BundleOutput(config.stain, (0,) * (len(config.channels) or 3), config.channels),
        weights=BundleWeights(weights.name, sha256_of(weights)),
        licence=config.licence,
        network=network,
    )


def _compare(bundle: Bundle, tensors: TestTensors) -> None:
    """Refuse a network that does not make of the test image what its folder states."""
    network = bundle.config.network
    assert network, "the bundle is of an imported network"
    log.info(
        "agreement with the folder's test tensors: %.1f dB", tensors.compare(bundle.generator("cpu"), network.colours)
    )


def _measured(spec: BundleConfig, folder: Path, config: ImportConfig) -> BundleConfig:
    """The specification with all that is measured: background, overlap, tile tolerance, facts."""
    bundle = Bundle(spec, folder)
    agreement_db = facts.agreement(bundle)
    if agreement_db < LEAST_DB:
        raise BundleError(
            f"the bundle agrees with the source network only to {agreement_db:.1f} dB, and {LEAST_DB:g} dB are required"
        )
    with facts.calibrated(bundle) as generator:
        measured = facts.facts(bundle, generator, agreement_db)
        overlap = _overlap(measured.reach, config)
        background = config.background or facts.background(bundle, generator)
        spec = dataclasses.replace(
            spec,
            input=dataclasses.replace(spec.input, overlap=overlap),
            output=dataclasses.replace(spec.output, background=background),
            measured=measured,
        )
        return dataclasses.replace(spec, tile_tolerance=_tolerance(Bundle(spec, folder), generator))


def _overlap(reach: int, config: ImportConfig) -> int:
    """Twice the reach, so that no border of a tile is seen, as far as half a tile allows; a multiple of `multiple`."""
    if config.overlap is not None:
        if config.overlap % config.multiple or 2 * config.overlap > config.tile:
            raise BundleError(
                f"overlap is {config.overlap}: it must be a multiple of {config.multiple} px, at most half a tile"
            )
        return config.overlap
    most = config.tile // 2 // config.multiple * config.multiple
    return min(most, -(-2 * reach // config.multiple) * config.multiple)


def _tolerance(bundle: Bundle, generator: TileGenerator) -> TileTolerance | None:
    """The tile tolerance; none for a graph that takes one size only."""
    try:
        return tolerance(measure(bundle, generator))
    except BundleError as err:
        log.warning("tiles cannot be compared with one pass, so the bundle states no tile tolerance: %s", err)
        return None


def _plain(spec: BundleConfig) -> dict[str, Any]:
    """The specification for bundle.yaml, without settings of networks of our own."""
    return {key: value for key, value in dump(spec).items() if value is not None} | {"generator": {"kind": "imported"}}
