"""The residual generator of the CycleGAN family, with the layer numbers of its published weight files.

conv 7×7, two halvings, residual blocks at quarter resolution, two doublings, conv 7×7, tanh.

Sources: Johnson et al., ECCV 2016 (the layers); Zhu et al., "CycleGAN", ICCV 2017, section 7.2 (6 or 9 blocks, instance
norm, reflected borders); Park et al., "CUT", ECCV 2020 (anti-aliased halving and doubling).
"""

from __future__ import annotations

from torch import Tensor, nn

from wsi_stain.config.network import NetworkConfig
from wsi_stain.nn.antialias import BlurDown, BlurUp


class Resnet(nn.Module):
    """The generator; weights are named `model.<layer>.…` and `model.<layer>.conv_block.<layer>.…`.

    Args:
        config: its kind gives the number of blocks.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w, blocks = config.width, int(config.kind.rpartition("-")[2])
        blurs_down, blurs_up = config.antialias
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), *_conv(config, 3, w, side=7)]
        for c in (w, 2 * w):
            layers += _conv(config, c, 2 * c, padding=1, stride=1 if blurs_down else 2)
            layers += [BlurDown(2 * c)] if blurs_down else []
        layers += [ResidualBlock(config, 4 * w) for _ in range(blocks)]
        for c in (4 * w, 2 * w):
            if blurs_up:
                layers += [BlurUp(c), *_conv(config, c, c // 2, padding=1)]
            else:
                enlarge = nn.ConvTranspose2d(c, c // 2, 3, 2, padding=1, output_padding=1, bias=has_bias(config))
                layers += [enlarge, norm_of(config, c // 2), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(w, config.outputs, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), H and W multiples of 4 → (N, outputs, H, W) in [-1, 1]."""
        return self.model(x)


class ResidualBlock(nn.Module):
    """Two reflect-padded 3×3 convolutions with norms around an identity.

    Args:
        config: of the network.
        channels: in and out.
    """

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        second = _conv(config, channels, channels)[:-1]
        first = _conv(config, channels, channels)
        self.conv_block = nn.Sequential(nn.ReflectionPad2d(1), *first, nn.ReflectionPad2d(1), *second)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        return x + self.conv_block(x)


def norm_of(config: NetworkConfig, channels: int) -> nn.Module:
    """A normalisation layer of the network."""
    match config.norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "instance":
            return nn.InstanceNorm2d(channels, affine=config.affine)
        case "none":
            return nn.Identity()


def has_bias(config: NetworkConfig) -> bool:
    """Whether convolutions before a norm have a bias: published networks have one only before instance norms."""
    return config.norm == "instance"


def _conv(
    config: NetworkConfig, inputs: int, outputs: int, *, side: int = 3, padding: int = 0, stride: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, side, stride=stride, padding=padding, bias=has_bias(config))
    return [conv, norm_of(config, outputs), nn.ReLU()]
