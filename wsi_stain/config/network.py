"""Settings of an imported network: what its bundle states, what was measured, and what `models import` is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from wsi_stain.config.channels import Channel, check_background, check_channels
from wsi_stain.config.ranges import Byte, Count, Mpp, NonNegative, NonNegativeInt, Range, check_ranges
from wsi_stain.errors import ConfigError

TorchKind = Literal["resnet-6", "resnet-9", "unet-128", "unet-256"]
ImportKind = Literal["resnet-6", "resnet-9", "unet-128", "unet-256", "onnx"]
Colours = Literal["rgb", "bgr"]
Value = Annotated[float, Range(-65536, 65536)]
Values = tuple[Value, Value]
"""What the pixel values 0 and 255 are for a network, for example (-1, 1)."""

TORCH_KINDS = get_args(TorchKind)
KIND_MULTIPLES: dict[str, int] = {"resnet-6": 4, "resnet-9": 4, "unet-128": 128, "unet-256": 256}
"""Pixels that must divide the sides of a tile: two halvings, or as many as the U-Net's name states."""

FACTS = {
    "mpp": "µm per px of the images that it was trained on",
    "stain": "the stain that it produces",
    "licence": "SPDX expression for the weights",
    "values_in": "what pixel values 0 and 255 are for its input, for example -1,1",
    "values_out": "what pixel values 0 and 255 are in its output, for example -1,1",
    "colours": "order of the colours, rgb or bgr",
    "tile": "side of its tiles, px",
    "multiple": "number that must divide the sides of its tiles, px",
}
"""What no weight file states; `multiple` follows from the kind, except for ONNX."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """`network` of a bundle.yaml: an imported network, and how pixels become its numbers."""

    kind: ImportKind
    values_in: Values
    values_out: Values
    colours: Colours
    multiple: Count
    norm: Literal["none", "batch", "instance"]
    """`instance`: it normalises by statistics of each tile, which `convert` replaces by those of the slide."""
    outputs: Count = 3
    """Channels of its output: 3 (RGB), 1 (grey), or as many as the bundle names."""
    width: Count = 64
    """Channels of its first layer; of no meaning for ONNX."""
    affine: bool = False
    """Whether its instance norms have weights; batch norms always have."""
    antialias: tuple[bool, bool] = (False, False)
    """Whether it halves, and doubles, with a blur (Zhang, ICML 2019)."""
    output: str = ""
    """Name of the output of an ONNX graph that is the stain, if there are several."""
    fluorescence: bool = False
    """Whether its outputs are channels of their own, which the bundle names; otherwise they are colours, or grey."""

    @property
    def pixel_values(self) -> int:
        """Values of a pixel of the stain: 3 for colours, and for grey, which is shown as them."""
        return self.outputs if self.fluorescence else 3

    def __post_init__(self) -> None:
        check_ranges(self)
        for key in ("values_in", "values_out"):
            low, high = getattr(self, key)
            if not low < high:
                raise ConfigError(f"network.{key} is {low:g},{high:g}: the first must be below the second")


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What was measured when a network was imported."""

    reach: NonNegativeInt
    """Distance in px beyond which input changes no output byte, with frozen statistics; half a tile if it is not
    shorter."""
    tile_statistics: bool
    """Whether a pixel depends on statistics of its tile, unless they are frozen to those of the slide."""
    agreement_db: NonNegative
    """Lowest PSNR of the bundle in float32 against the source network, over `AGREEMENT_TILES` tiles; at most 99."""
    seconds_per_tile: NonNegative
    device: str
    """Where the time was measured."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class ImportConfig:
    """What `models import` is told; every key of `FACTS` is required."""

    kind: ImportKind
    mpp: Mpp
    stain: str
    licence: str
    values_in: Values
    values_out: Values
    colours: Colours
    tile: Count
    multiple: Count
    overlap: NonNegativeInt | None = None
    """Pixels that neighbouring tiles share; by default twice the measured reach, at most half a tile."""
    input_stain: str = "H&E"
    background: tuple[Byte, ...] | None = None
    """Colour of empty slide in the stain (R, G, B, or one value for each channel); by default what the network makes of
    empty slide."""
    channels: tuple[Channel, ...] = ()
    """Names of its outputs, if each is a fluorescence channel; empty for colours and grey."""
    version: str = "1.0.0"
    output: str = ""
    """See `NetworkConfig.output`."""
    limit_s: Annotated[int, Range(1, 3600)] = 120
    """Seconds that reading the file, and its first run, may take."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.tile % self.multiple:
            raise ConfigError(f"tile is {self.tile}: it must be a multiple of {self.multiple} px (multiple)")
        check_channels(self.channels)
        if self.background is not None:
            check_background(self.background, self.channels, "background")
