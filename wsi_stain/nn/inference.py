"""A trained generator behind the engine's interface: pixels in, pixels out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from wsi_stain.config.convert import Precision, PrecisionChoice
from wsi_stain.config.model import GeneratorConfig
from wsi_stain.config.network import NetworkConfig
from wsi_stain.errors import BundleError, DeviceError
from wsi_stain.nn.folding import folded
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.pixels import to_bytes, to_levels, to_pixels, to_tensor, to_values
from wsi_stain.nn.published import Published, fast

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IN_FLIGHT = 8
"""Tiles per call, enough to hide the transfers and the launches of a CUDA device; each still runs alone."""


class TorchGenerator:
    """Runs the fast form of a trained generator on one device; see `TileGenerator` in model/bundle.py.

    Args:
        module: the trained network; it is copied.
        device: `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: of the arithmetic; input and output are uint8.
    """

    def __init__(self, module: Generator | Published, device: str, precision: Precision = "fp32") -> None:
        self.multiple = module.multiple
        self.device = torch.device(device)
        self.precision = precision
        self.batch = IN_FLIGHT if self.device.type == "cuda" else 1
        self._dtype = DTYPES[precision]
        if isinstance(module, Published):
            form, self._read = fast(module, self._dtype), to_values
        else:
            form, self._read = folded(module, self._dtype), to_levels
        self.module = form.to(self.device)
        values = module.pixel_values if isinstance(module, Published) else 3
        self._run = CudaRunner(self.device, self._stain, values) if self.device.type == "cuda" else self._one_by_one

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) H&E → uint8 (N, H, W, C) stain.

        A tile's result does not depend on the others: each runs alone, because libraries choose other kernels,
        with other rounding, for other batch sizes.
        """
        own = np.require(tiles, requirements=["C_CONTIGUOUS", "WRITEABLE"])  # torch warns about read-only arrays
        return self._run(torch.from_numpy(own)).numpy()

    def _one_by_one(self, tiles: Tensor) -> Tensor:
        return torch.cat([self._stain(tile.to(self.device)).cpu() for tile in tiles.split(1)])

    @torch.inference_mode()
    def _stain(self, tile: Tensor) -> Tensor:
        return to_bytes(self.module(self._read(tile, self._dtype)))


class PlainGenerator:
    """Runs a network layer by layer as it was trained, in float32 on the CPU; what others are compared with.

    Args:
        module: an imported network.
    """

    batch = 1

    def __init__(self, module: Published) -> None:
        self.multiple, self.module = module.multiple, module.eval()

    @torch.inference_mode()
    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) → uint8 (N, H, W, C)."""
        return np.concatenate([to_pixels(self.module(to_tensor(tile[None]))) for tile in tiles])


class CudaRunner:
    """Feeds a CUDA device tile by tile: uploads, arithmetic and downloads run concurrently on separate streams.

    Args:
        device: a CUDA device.
        stain: uint8 (1, H, W, 3) → uint8 (1, H, W, C), both on the device; it only queues work on the current stream.
        values: C.
    """

    def __init__(self, device: torch.device, stain: Callable[[Tensor], Tensor], values: int = 3) -> None:
        self._device, self._stain, self._values = device, stain, values
        self._up, self._work, self._down = (torch.cuda.Stream(device) for _ in range(3))
        torch.cuda.synchronize(device)  # the weights must be loaded before another stream reads them

    def __call__(self, tiles: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) in the host's memory → uint8 (N, H, W, C), pinned."""
        results = torch.empty((*tiles.shape[:3], self._values), dtype=torch.uint8, pin_memory=True)
        arriving = [self._upload(tile) for tile in tiles.pin_memory().split(1)]
        for (tile, there), result in zip(arriving, results.split(1), strict=True):
            self._work.wait_event(there)
            with torch.cuda.stream(self._work):
                tile.record_stream(self._work)  # its memory is reusable when this stream has finished with it
                stained = self._stain(tile)
            self._down.wait_stream(self._work)
            with torch.cuda.stream(self._down):
                stained.record_stream(self._down)
                result.copy_(stained, non_blocking=True)
        self._down.synchronize()
        return results

    def _upload(self, tile: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        there = torch.cuda.Event()
        with torch.cuda.stream(self._up):
            arriving = tile.to(self._device, non_blocking=True)
            there.record(self._up)
        return arriving, there


def load_generator(config: GeneratorConfig, weights: Path) -> Generator:
    """The network of `config` with the weights of a safetensors file, in float32 and evaluation mode.

    Raises:
        BundleError: the file is not safetensors, or its tensors do not match the network.
    """
    module = Generator(config)
    _fill(module, weights)
    return module.eval()


def load_published(config: NetworkConfig, weights: Path) -> Published:
    """An imported network with the weights of a safetensors file, in float32 and evaluation mode.

    Raises:
        BundleError: the file is not safetensors, or its tensors do not match the network.
    """
    module = Published(config)
    _fill(module.network, weights)
    return module.eval()


def _fill(module: nn.Module, weights: Path) -> None:
    try:
        module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()})
    except (SafetensorError, OSError) as err:
        raise BundleError(f"{weights} is not a safetensors file: {err}; reinstall the bundle") from err
    except RuntimeError as err:
        raise BundleError(f"{weights} does not fit the network in its configuration: {err}") from err


def pick_device(name: str) -> str:
    """`auto` → the best available device; other names are checked.

    Raises:
        DeviceError: an unknown name, or a device that does not exist.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise DeviceError(f"--device {name}: no such device; choose auto, cpu, cuda, cuda:N or mps") from err
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(
            f"--device {name}: torch finds {count} CUDA devices on this machine; use --device cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"--device {name}: torch finds no GPU of Apple on this machine; use --device cpu or auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"--device {name}: not supported; choose auto, cpu, cuda, cuda:N or mps")
    return name


def pick_precision(name: PrecisionChoice, device: str) -> Precision:
    """`auto` → the fastest precision that the device supports; other names are checked.

    Raises:
        DeviceError: float16 on a CPU, or a device that does not exist.
    """
    kind = torch.device(device := pick_device(device)).type
    if name == "fp16" and kind == "cpu":
        raise DeviceError(
            "--precision fp16: float16 is not faster on CPUs; choose auto, fp32 or bf16 with --device cpu"
        )
    if kind == "mps" and name not in ("auto", "fp32"):
        raise DeviceError(f"--precision {name}: --device mps computes in float32; choose auto or fp32")
    if name != "auto":
        return name
    if kind == "mps":
        return "fp32"
    if kind == "cpu":
        # Without such units oneDNN computes bfloat16 with float32, more slowly. Older torch does not report them.
        units = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if units.get("avx512_bf16") or units.get("amx_bf16") else "fp32"
    # By generation: Ampere has bfloat16, Volta and Turing float16 on tensor cores, Pascal neither.
    generation = torch.cuda.get_device_capability(device)[0]
    return "bf16" if generation >= 8 else "fp16" if generation == 7 else "fp32"


def save_half(source: Path, target: Path) -> None:
    """Copy a weight file with kernels in float16; vectors (norms, biases) stay float32, since float16 underflows."""
    tensors = {k: v.half() if v.is_floating_point() and v.dim() > 1 else v for k, v in load_file(source).items()}
    target.write_bytes(save(tensors))  # `save_file` makes files that only their owner can read
