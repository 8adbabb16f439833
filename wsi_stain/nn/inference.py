"""A trained generator as the engine sees it: pixels in, pixels out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from wsi_stain.config import GeneratorConfig
from wsi_stain.errors import BundleError, DeviceError
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.pixels import to_pixels, to_tensor
from wsi_stain.nn.wavelet import use_strided_haar

Precision = Literal["fp32", "bf16"]
REACH = 129
"""Receptive-field radius in px without attention: a hard bound, from the kernels and strides."""


class TorchGenerator:
    """Runs a generator with frozen statistics on one device; see the engine's `Generator` protocol.

    Args:
        module: the trained network.
        device: `cpu`, `cuda` or `cuda:N`.
        precision: of the arithmetic; what goes in and out is uint8.
    """

    reach = REACH

    def __init__(self, module: Generator, device: str, precision: Precision = "fp32") -> None:
        self.multiple = module.multiple
        self.device = torch.device(device)
        self.precision = precision
        use_strided_haar(module)
        # Tensor cores want channels-last; oneDNN's depthwise kernels are about a tenth faster without.
        self._layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        self.module = module.to(self.device, memory_format=self._layout).eval().requires_grad_(False)  # type: ignore

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) H&E → uint8 (N, H, W, 3) stain.

        A tile's result does not depend on its companions: each runs alone, since libraries choose other kernels,
        and so other roundings, for other batch sizes.
        """
        return np.concatenate([self._stain(tiles[i : i + 1]) for i in range(len(tiles))])

    @torch.inference_mode()
    def _stain(self, tile: np.ndarray) -> np.ndarray:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            x = to_tensor(tile, self.device).contiguous(memory_format=self._layout)
            return to_pixels(self.module(x))


def load_generator(config: GeneratorConfig, weights: Path) -> Generator:
    """The network of `config` with the weights of a safetensors file, in float32 and evaluation mode.

    Raises:
        BundleError: the file is not safetensors, or its tensors do not fit the network.
    """
    module = Generator(config)
    try:
        module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()})
    except (SafetensorError, OSError) as err:
        raise BundleError(f"{weights} is not a safetensors file: {err}; install the bundle again") from err
    except RuntimeError as err:
        raise BundleError(f"{weights} does not fit the network in bundle.yaml: {err}") from err
    return module.eval()


def pick_device(name: str) -> str:
    """`auto` → the best device there is; anything else is checked.

    Raises:
        DeviceError: an unknown name, or a CUDA device that is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise DeviceError(f"--device {name}: no such device; choose auto, cpu, cuda or cuda:N") from err
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise DeviceError(f"--device {name}: torch sees {found} CUDA devices on this machine; use --device cpu or auto")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device {name}: only cpu and cuda are supported; choose auto, cpu, cuda or cuda:N")
    return name


def save_half(source: Path, target: Path) -> None:
    """Copy a weight file with kernels in float16; vectors (norms, biases) stay float32, where half would underflow."""
    tensors = {k: v.half() if v.is_floating_point() and v.dim() > 1 else v for k, v in load_file(source).items()}
    save_file(tensors, target)
    target.chmod(0o644)  # safetensors makes files that only their owner can read
