"""Networks of other people's training codes behind the interface of ours: RGB in [-1, 1] in, the stain out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from wsi_stain.config.network import NetworkConfig, Values
from wsi_stain.nn.fast_layers import PhasedConv
from wsi_stain.nn.folding import fold_sequence
from wsi_stain.nn.resnet import Resnet
from wsi_stain.nn.skip_unet import SkipUNet


def build(config: NetworkConfig) -> nn.Module:
    """The network of a configuration, with random weights; its input and output are in the network's own values."""
    return SkipUNet(config) if config.kind.startswith("unet") else Resnet(config)


class Published(nn.Module):
    """An imported network with the values and colours that it was trained on translated at both ends.

    Args:
        config: the network.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.multiple = config.multiple
        self.network = build(config)
        self.values_in, self.values_out = config.values_in, config.values_out
        self.is_bgr, self.is_grey = config.colours == "bgr", config.outputs == 1 and not config.fluorescence
        self.pixel_values = config.pixel_values
        self._flips = self.is_bgr and not config.fluorescence

    def forward(self, he: Tensor) -> Tensor:
        """(N, 3, H, W) RGB, H and W multiples of `multiple` → stain (N, `pixel_values`, H, W); both in [-1, 1]."""
        he = he.flip(1) if self.is_bgr else he
        stain = to_unit(self.network(from_unit(he, self.values_in)), self.values_out)
        if self.is_grey:
            return stain.expand(-1, 3, -1, -1)
        return stain.flip(1) if self._flips else stain


def from_unit(x: Tensor, values: Values) -> Tensor:
    """[-1, 1] → the range `values`."""
    low, high = values
    return x if (low, high) == (-1, 1) else (x + 1) * ((high - low) / 2) + low


def to_unit(x: Tensor, values: Values) -> Tensor:
    """The range `values` → [-1, 1]."""
    low, high = values
    return x if (low, high) == (-1, 1) else (x - low) * (2 / (high - low)) - 1


def fast(module: Published, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same function in fewer operations, with weights of `dtype`: see `folding`. The module stays as it is.

    Convolutions and the frozen norms after them become one, and transposed convolutions become ordinary ones, which
    round the same for any number of threads.
    """
    folded = copy.deepcopy(module).eval().requires_grad_(False).double()
    _fold(folded)
    if isinstance(folded.network, Resnet):
        *layers, last, activation = folded.network.model.children()
        assert isinstance(last, nn.Conv2d), "a generator ends in a convolution and its activation"
        folded.network.model = nn.Sequential(*layers, PhasedConv(last), activation)
    return folded.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fold(module: nn.Module) -> None:
    for name, child in module.named_children():
        _fold(child)
        if isinstance(child, nn.Sequential):
            setattr(module, name, fold_sequence(child))
