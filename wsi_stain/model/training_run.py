"""The folder of a training, and its one reading: `TrainingRun.open`.

config.yaml               the settings
generator.safetensors     the result: averaged weights, and the number of images seen
checkpoint.safetensors    the state from which the same command resumes
encoders/                 the pretraining, with files of the same names
log.jsonl, tensorboard/, samples/
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsi_stain.config.loader import load
from wsi_stain.config.model import BundleConfig, BundleWeights
from wsi_stain.config.train import TrainConfig
from wsi_stain.errors import ConfigError, TrainingError
from wsi_stain.model.bundle import WEIGHTS, Bundle, sha256_of

CONFIG = "config.yaml"
CHECKPOINT = "checkpoint.safetensors"

Kind = Literal["ceff", "unet"]


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A training with a result; the networks themselves are not loaded.

    Example:
        >>> TrainingRun.open(Path("runs/first"), "ceff").as_bundle().generator("cpu")  # doctest: +SKIP
    """

    folder: Path
    config: TrainConfig
    images: int | None
    """Images of which the result has seen; `None` if its file does not state them."""
    parameters: int
    """Learned numbers in the result."""

    @classmethod
    def open(cls, folder: Path, kind: Kind | None = None) -> TrainingRun:
        """Read the settings of a run and the header of its weights.

        Args:
            folder: the run folder of `wsi-stain train`.
            kind: required `generator.kind`.

        Raises:
            TrainingError: the folder does not exist or is not that of a training, a file is missing or damaged, or the
                network is of another kind.
        """
        if not folder.is_dir():
            raise TrainingError(f"no run folder at {folder}: pass the run folder of wsi-stain train")
        if not (folder / CONFIG).is_file():
            raise TrainingError(f"{folder} is not the folder of a training ({CONFIG} is missing): pass a run folder")
        config = _settings(folder / CONFIG)
        if kind is not None and config.generator.kind != kind:
            raise TrainingError(_other_kind(folder, kind))
        if not (folder / WEIGHTS).is_file():
            raise TrainingError(f"{folder} has no result yet ({WEIGHTS} is missing): run wsi-stain train first")
        facts, parameters = _header(folder / WEIGHTS)
        return cls(folder, config, facts.get("images"), parameters)

    @property
    def weights(self) -> Path:
        """The file of the result."""
        return self.folder / WEIGHTS

    def as_bundle(self) -> Bundle:
        """The result as a bundle that is not packed: in full precision, named after the run folder."""
        return Bundle(self.bundle_config(self.folder.resolve().name, "unpacked", self.weights), self.folder)

    def bundle_config(self, name: str, version: str, weights: Path, licence: str = "") -> BundleConfig:
        """The specification of a bundle of the result, with these weights."""
        return BundleConfig(
            name=name,
            version=version,
            generator=self.config.generator,
            input=self.config.input,
            output=self.config.output,
            weights=BundleWeights(weights.name, sha256_of(weights)),
            licence=licence,
        )


def _settings(file: Path) -> TrainConfig:
    try:
        return load(TrainConfig, file)
    except ConfigError as err:
        raise TrainingError(f"the settings of the run are damaged: {err}") from err


def _other_kind(folder: Path, kind: Kind) -> str:
    if kind == "unet":
        return (
            f"{folder} trained a generator that stains, not a direct regressor (generator.kind unet): pass it to "
            "wsi-stain evaluate --run"
        )
    return (
        f"{folder} trained a direct regressor (generator.kind unet), which produces no image: pass it to "
        "wsi-stain evaluate --regressor"
    )


def _header(weights: Path) -> tuple[dict[str, Any], int]:
    """The facts of a weight file, and the number of its learned values; its tensors are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            learned = [key for key in file.keys() if key.endswith((".weight", ".bias"))]  # noqa: SIM118 - not a dict
            return dict(facts), sum(math.prod(file.get_slice(key).get_shape()) for key in learned)
    except (SafetensorError, OSError, ValueError, TypeError) as err:
        raise TrainingError(
            f"{weights} is damaged ({err}): remove it and re-run the training, which writes it again"
        ) from err
