"""Bundles: trained models as folders (bundle.yaml, generator.safetensors, card.md), found and verified.

Nothing is unpickled, ever: weights are safetensors, and their SHA-256 is checked before they are opened.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from wsi_stain.config.convert import Precision, PrecisionChoice
from wsi_stain.config.loader import load
from wsi_stain.config.model import BundleConfig, BundleInput, BundleOutput, BundlePromise, GeneratorConfig
from wsi_stain.errors import BundleError

DEFAULT = "he2cam52-small"
"""The bundle that `convert` uses when none is named."""
SPEC = "bundle.yaml"
WEIGHTS = "generator.safetensors"

_PACKAGE = Path(__file__).parents[1]
_SHIPPED = (_PACKAGE / "bundles", _PACKAGE.parent / "models")  # in a wheel; in a checkout

IDENTITY = BundleConfig(
    name="identity",
    version="1.0.0",
    generator=GeneratorConfig(kind="identity"),
    input=BundleInput(stain="any", mpp=None, tile=512, overlap=0),
    output=BundleOutput(stain="identity"),
    licence="Apache-2.0",
)


class Generator(Protocol):
    """What stains tiles; device, layout, precision and normalisation are its own business."""

    multiple: int
    """Tile origins and sides must be multiples of this many px."""
    reach: int
    """Radius in px within which an input pixel can change an output pixel."""
    batch: int
    """Tiles per call that suit its device."""

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) sRGB → uint8 (N, H, W, 3); each tile's result is independent of the others."""
        ...


class IdentityGenerator:
    """Output = input: the self-test of everything but the network."""

    multiple = 1
    reach = 0
    batch = 4

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) → the same."""
        return tiles


@dataclass(frozen=True, slots=True)
class Bundle:
    """One trained model.

    Args:
        config: its bundle.yaml.
        folder: where its files are; `None` for the built-in identity.

    Example:
        >>> Bundle.open("identity").stain
        'identity'
    """

    config: BundleConfig
    folder: Path | None

    @classmethod
    def open(cls, name: str | Path = DEFAULT) -> Bundle:
        """The bundle of that name (shipped ones, `identity`) or in that folder, its weights' hash verified.

        Raises:
            BundleError: no such bundle, a broken bundle.yaml, missing or altered weights.
        """
        if str(name) == IDENTITY.name:
            return cls(IDENTITY, None)
        folder = _find(name)
        bundle = cls(load(BundleConfig, folder / SPEC), folder)
        bundle._verify()
        return bundle

    @property
    def name(self) -> str:
        """Name, as in `--model`."""
        return self.config.name

    @property
    def version(self) -> str:
        """Version; a changed weight file is a new one."""
        return self.config.version

    @property
    def stain(self) -> str:
        """The stain that it makes, for people."""
        return self.config.output.stain

    @property
    def stain_slug(self) -> str:
        """The stain as a part of file names: `CAM5.2` → `cam52`."""
        return re.sub(r"[^a-z0-9]+", "", self.stain.lower()) or "stain"

    @property
    def mpp(self) -> float | None:
        """µm per px at which it works; `None`: the slide's level 0."""
        return self.config.input.mpp

    @property
    def tile(self) -> int:
        """Side of its tiles, px."""
        return self.config.input.tile

    @property
    def overlap(self) -> int:
        """Pixels that neighbouring tiles share."""
        return self.config.input.overlap

    @property
    def glass(self) -> tuple[int, int, int]:
        """Colour (R, G, B) of empty slide in its stain."""
        return self.config.output.glass

    @property
    def multiple(self) -> int:
        """Px of which tile origins and sides must be multiples; the generator's own, known without torch."""
        return self.config.generator.multiple

    @property
    def is_pointwise(self) -> bool:
        """Whether each pixel is made from itself alone, so that there cannot be seams."""
        return self.config.generator.kind == "identity"

    @property
    def has_tile_statistics(self) -> bool:
        """Whether its network normalises by statistics of the very tile, unless they are measured for a slide."""
        return self.config.generator.norm == "instance"

    @property
    def promise(self) -> BundlePromise | None:
        """How far tiles may be from one pass; `None` promises nothing."""
        return self.config.invariance

    @property
    def sha256(self) -> str:
        """Hash of the weights; empty for identity."""
        return self.config.weights.sha256 if self.config.weights else ""

    @property
    def weights_path(self) -> Path:
        """The weight file."""
        assert self.folder, "identity has no weights"
        assert self.config.weights, "identity has no weights"
        return self.folder / self.config.weights.file

    @property
    def card_path(self) -> Path | None:
        """The model card; `None` for identity."""
        return self.folder / self.config.card if self.folder else None

    def generator(
        self, device: str = "cpu", *, precision: PrecisionChoice = "fp32", statistics: Path | None = None
    ) -> Generator:
        """The generator on a device (`auto`, `cpu`, `cuda`, `cuda:N`); imports torch unless this is `identity`.

        Args:
            device: where it runs.
            precision: of its arithmetic.
            statistics: those of a slide (`nn.norm.measure`), to be used instead of each tile's own.

        Raises:
            BundleError: the weights do not fit the network.
            DeviceError: the device is not there, or has no such precision.
        """
        if self.config.generator.kind == "identity":
            return IdentityGenerator()
        from wsi_stain.nn.inference import TorchGenerator, load_generator, pick_device

        module = load_generator(self.config.generator, self.weights_path)
        if statistics is not None:
            from wsi_stain.nn.norm import freeze

            freeze(module, statistics)
        return TorchGenerator(module, pick_device(device), self.precision(device, precision))

    def measure_statistics(self, tiles: Sequence[np.ndarray], device: str = "cpu") -> bytes:
        """The statistics of a slide, of uint8 (h, w, 3) tiles of it, as the file that `generator` takes."""
        from wsi_stain.nn.inference import load_generator, pick_device
        from wsi_stain.nn.norm import measure

        return measure(load_generator(self.config.generator, self.weights_path), tiles, pick_device(device))

    def precision(self, device: str, choice: PrecisionChoice) -> Precision:
        """The precision that `choice` means on a device of this machine; imports torch unless this is `identity`.

        Raises:
            DeviceError: the name is unknown, the device is not there, or has no such precision.
        """
        if self.config.generator.kind == "identity":
            return "fp32" if choice == "auto" else choice
        from wsi_stain.nn.inference import pick_precision

        return pick_precision(choice, device)

    def _verify(self) -> None:
        if self.config.generator.kind == "identity":
            return
        if self.config.generator.kind == "unet":
            raise BundleError(
                f"{self.folder}/{SPEC} names a direct regressor (generator.kind unet), which draws no picture: "
                "only a network that stains can be a bundle"
            )
        if self.config.weights is None:
            raise BundleError(
                f"{self.folder}/{SPEC} names no weights: a {self.config.generator.kind} generator needs them"
            )
        for key, file in (("weights.file", self.config.weights.file), ("card", self.config.card)):
            if Path(file).name != file:
                raise BundleError(f"{self.folder}/{SPEC}: {key} is {file!r}: it must lie in the bundle's own folder")
        if not self.weights_path.is_file():
            raise BundleError(f"the bundle {self.name} has no {self.weights_path}: install it again")
        found = sha256_of(self.weights_path)
        if found != self.sha256:
            raise BundleError(
                f"the weights of the bundle {self.name} are not what its hash says ({self.weights_path}: "
                f"{found[:12]}…, expected {self.sha256[:12]}…): they were altered or truncated; install it again"
            )


def shipped() -> list[str]:
    """Names of the bundles that came with this installation, and `identity`."""
    found = {p.parent.name for root in _SHIPPED if root.is_dir() for p in root.glob(f"*/{SPEC}")}
    return [*sorted(found), IDENTITY.name]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find(name: str | Path) -> Path:
    for folder in (Path(name), *(root / str(name) for root in _SHIPPED)):
        if (folder / SPEC).is_file():
            return folder
    raise BundleError(
        f"unknown model {str(name)!r}: it is neither a folder with a {SPEC} nor one of {', '.join(shipped())}"
    )
