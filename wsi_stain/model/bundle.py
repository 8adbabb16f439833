"""Bundles: trained models as folders (bundle.yaml, generator.safetensors, card.md); lookup and verification.

Nothing is unpickled: weights are safetensors, and their SHA-256 is verified before they are opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wsi_stain.config.channels import Channel
from wsi_stain.config.convert import Precision, PrecisionChoice
from wsi_stain.config.loader import dump, load
from wsi_stain.config.model import BundleConfig, BundleInput, BundleOutput, GeneratorConfig, TileTolerance
from wsi_stain.config.network import NetworkConfig
from wsi_stain.config.trust import TrustConfig
from wsi_stain.errors import BundleError, DeviceError

DEFAULT = "he2cam52-small"
"""The default bundle of `convert`."""
SPEC = "bundle.yaml"
WEIGHTS = "generator.safetensors"
TRUST = "trust.yaml"

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


class TileGenerator(Protocol):
    """Stains tiles; device, layout, precision and normalisation are internal to it."""

    multiple: int
    """Tile origins and sides must be multiples of this many px."""
    batch: int
    """Number of tiles per call that suits its device."""

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) sRGB → uint8 (N, H, W, C); each tile's result is independent of the others."""
        ...


class IdentityGenerator:
    """Output = input: tests the whole pipeline except the network."""

    multiple = 1
    batch = 4

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) → unchanged."""
        return tiles


@dataclass(frozen=True, slots=True)
class Bundle:
    """One trained model.

    Args:
        config: its bundle.yaml.
        folder: of its files; `None` for the built-in identity.

    Examples:
        >>> Bundle.open("identity").stain
        'identity'
    """

    config: BundleConfig
    folder: Path | None

    @classmethod
    def open(cls, name: str | Path = DEFAULT) -> Bundle:
        """The bundle of that name (a shipped one or `identity`) or in that folder; verifies the hash of its weights.

        Raises:
            BundleError: the bundle is unknown, its bundle.yaml is invalid, or its weights are missing or altered.
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
        """Version; a changed weight file requires a new version."""
        return self.config.version

    @property
    def expects(self) -> str:
        """The stain of its input, for example `H&E`; `any` takes every slide."""
        return self.config.input.stain

    @property
    def stain(self) -> str:
        """Display name of the stain that it produces."""
        return self.config.output.stain

    @property
    def stain_slug(self) -> str:
        """The stain in file names: `CAM5.2` → `cam52`."""
        return re.sub(r"[^a-z0-9]+", "", self.stain.lower()) or "stain"

    @property
    def mpp(self) -> float | None:
        """µm per px of its input; `None` is the slide's level 0."""
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
    def background(self) -> tuple[int, ...]:
        """Colour (R, G, B) of the background in its stain, or its value in each channel."""
        return self.config.output.background

    @property
    def background_colour(self) -> tuple[int, int, int]:
        """Colour (R, G, B) of the background in its stain; only of a stain in colours.

        Raises:
            ConfigError: it makes fluorescence channels.
        """
        return self.config.output.background_colour

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Fluorescence channels of its stain; empty for colours."""
        return self.config.output.channels

    @property
    def multiple(self) -> int:
        """Tile origins and sides must be multiples of this many px; available without importing torch."""
        return self.config.network.multiple if self.config.network else self.config.generator.multiple

    @property
    def network_sha256(self) -> str | None:
        """Hash of the settings of an imported network, which change its pixels; `None` for our own."""
        if self.config.network is None:
            return None
        content = {key: value for key, value in dump(self.config.network).items() if key != "fluorescence" or value}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel depends on its input pixel alone, so that seams are impossible."""
        return self.config.generator.kind == "identity"

    @property
    def has_tile_statistics(self) -> bool:
        """Whether its network normalises by statistics of each tile, unless slide statistics are given."""
        return (self.config.network or self.config.generator).norm == "instance"

    @property
    def tolerance(self) -> TileTolerance | None:
        """Maximum difference between tiles and one pass; `None` if the bundle states none."""
        return self.config.tile_tolerance

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

    @property
    def trust(self) -> TrustConfig | None:
        """What is known of its training slides and its held-out errors; `None` if the bundle does not state it."""
        if self.folder is None or not (self.folder / TRUST).is_file():
            return None
        return load(TrustConfig, self.folder / TRUST)

    def generator(
        self, device: str = "cpu", *, precision: PrecisionChoice = "fp32", statistics: Path | None = None
    ) -> TileGenerator:
        """The generator on a device (`auto`, `cpu`, `cuda`, `cuda:N`); imports torch unless this is `identity`.

        Args:
            device: where it runs.
            precision: numeric precision.
            statistics: file with slide statistics (`nn.norm.measure`), used instead of those of each tile.

        Raises:
            BundleError: the weights do not fit the network.
            DeviceError: the device is missing, or does not support the precision.
        """
        if self.config.generator.kind == "identity":
            return IdentityGenerator()
        if (network := self.config.network) and network.kind == "onnx":
            from wsi_stain.graphs.session import open_generator, open_graph

            self.precision(device, precision)
            return open_generator(open_graph(self.weights_path, network), network, device, statistics, tile=self.tile)
        from wsi_stain.nn.inference import TorchGenerator, pick_device
        from wsi_stain.nn.norm import freeze
        from wsi_stain.nn.thread import ThreadedGenerator

        name, number_format = pick_device(device), self.precision(device, precision)

        def load_generator() -> TorchGenerator:
            module = self._network()
            if statistics is not None:
                freeze(module, statistics)
            return TorchGenerator(module, name, number_format)

        return ThreadedGenerator(name, load_generator)

    def measure_statistics(self, tiles: Sequence[np.ndarray], device: str = "cpu") -> bytes:
        """Statistics of a slide from its tiles, uint8 (h, w, 3), as the contents of the file for `generator`."""
        if (network := self.config.network) and network.kind == "onnx":
            from wsi_stain.graphs.session import measure as measure_graph
            from wsi_stain.graphs.session import open_graph

            return measure_graph(open_graph(self.weights_path, network), network, tiles, device, tile=self.tile)
        from wsi_stain.nn.inference import pick_device
        from wsi_stain.nn.norm import measure
        from wsi_stain.nn.thread import in_torch_thread

        name = pick_device(device)
        return in_torch_thread(name, lambda: measure(self._network(), tiles, name))

    def _network(self) -> Any:
        """The network in torch, with its weights."""
        from wsi_stain.nn.inference import load_generator, load_published

        if self.config.network is not None:
            return load_published(self.config.network, self.weights_path)
        return load_generator(self.config.generator, self.weights_path)

    def precision(self, device: str, choice: PrecisionChoice) -> Precision:
        """The precision selected by `choice` on a device of this machine; imports torch unless this is `identity`.

        Raises:
            DeviceError: the name is unknown, or the device is missing or does not support the precision.
        """
        if self.config.generator.kind == "identity":
            return "fp32" if choice == "auto" else choice
        if self.config.network is not None:
            return _imported_precision(self.config.network, device, choice)
        from wsi_stain.nn.inference import pick_precision

        return pick_precision(choice, device)

    def _verify(self) -> None:
        if self.config.generator.kind == "identity":
            return
        if self.config.generator.kind == "unet":
            raise BundleError(
                f"{self.folder}/{SPEC} has a direct regressor (generator.kind unet), which produces no image; "
                "a bundle requires a network that stains"
            )
        if self.config.weights is None:
            raise BundleError(
                f"{self.folder}/{SPEC} has no weights; a {self.config.generator.kind} generator requires them"
            )
        for key, file in (("weights.file", self.config.weights.file), ("card", self.config.card)):
            if Path(file).name != file:
                raise BundleError(f"{self.folder}/{SPEC}: {key} is {file!r}; it must be in the bundle's own folder")
        if not self.weights_path.is_file():
            raise BundleError(f"the bundle {self.name} has no {self.weights_path}; install it again")
        sha256 = sha256_of(self.weights_path)
        if sha256 != self.sha256:
            raise BundleError(
                f"the weights of the bundle {self.name} do not match its hash ({self.weights_path}: "
                f"{sha256[:12]}…, expected {self.sha256[:12]}…); they were altered or truncated; install it again"
            )


def _imported_precision(network: NetworkConfig, device: str, choice: PrecisionChoice) -> Precision:
    """Float32 unless another is chosen: the agreement with the source network was measured in float32."""
    if network.kind == "onnx":
        if choice not in ("auto", "fp32"):
            raise DeviceError(f"--precision {choice}: an ONNX model computes in its own precision; omit --precision")
        return "fp32"
    from wsi_stain.nn.inference import pick_precision

    return pick_precision("fp32" if choice == "auto" else choice, device)


def shipped() -> list[str]:
    """Names of the bundles in this installation, and `identity`."""
    names = {p.parent.name for root in _SHIPPED if root.is_dir() for p in root.glob(f"*/{SPEC}")}
    return [*sorted(names), IDENTITY.name]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find(name: str | Path) -> Path:
    for folder in (Path(name), *(root / str(name) for root in _SHIPPED)):
        if (folder / SPEC).is_file():
            return folder
    if Path(name).is_file() and Path(name).suffix in (".zip", ".tar"):
        raise BundleError(f"{name} is a packed bundle; unpack it first: wsi-stain models unpack {name} FOLDER")
    raise BundleError(f"unknown model {str(name)!r}; pass a folder with a {SPEC}, or one of {', '.join(shipped())}")
