"""How fast the generator of a bundle is, step by step, and how far from what its arithmetic alone would take.

    python benchmarks/generator.py --device cpu --threads 2
    python benchmarks/generator.py --tiles folder/of/images --rounds 7

Prints a Markdown table: tiles/s, the ratio to the plain module (library Haar, batch norms, float32, eager), and the
least PSNR against it over the tiles. All contenders take turns in one run, so that what else the machine does meets
them alike; figures are medians over rounds of the ratio within a round. The floor of a precision is the FLOPs of the
network (convolutions, and attention without masked keys) over the best rate speeds for a matrix product and for a
convolution of the trunk. Without --tiles the tiles are procedural histology.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wsi_stain.model.bundle import DEFAULT, Bundle
from wsi_stain.model.tile_tolerance import field
from wsi_stain.nn.folding import folded
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.inference import DTYPES, TorchGenerator, load_generator, pick_device
from wsi_stain.nn.pixels import to_levels, to_pixels, to_tensor
from wsi_stain.nn.wavelet import use_strided_haar

Contender = Callable[[np.ndarray], np.ndarray]


def contenders(bundle: Bundle, plain: Generator, device: str) -> dict[str, Contender]:
    """From the plain module to what `convert` runs; each maps uint8 (1, H, W, 3) to the same."""
    strided = copy.deepcopy(plain)
    use_strided_haar(strided)

    def eager(module: torch.nn.Module, bf16: bool = False) -> Contender:
        def run(tile: np.ndarray) -> np.ndarray:
            with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                return to_pixels(module(to_tensor(tile, device)))

        return run

    speeds = {
        "plain module, library Haar, fp32": eager(plain),
        "… strided Haar": eager(strided),
        "… and bf16 by autocast": eager(strided, bf16=True),
    }
    for precision in ("fp32", "bf16", "fp16") if device != "cpu" else ("fp32", "bf16"):
        speeds[f"fast form, {precision}"] = TorchGenerator(plain, device, precision)
    auto = bundle.precision(device, "auto")
    return {f"{name} (`auto`)" if name == f"fast form, {auto}" else name: run for name, run in speeds.items()}


def flops(plain: Generator, tile: np.ndarray, device: str) -> int:
    """Of the plain module's convolutions and the fast form's attention."""
    fast, x = folded(plain).to(device), torch.from_numpy(tile).to(device)
    with torch.inference_mode(), FlopCounterMode(display=False) as convolutions:
        plain(to_tensor(tile, device))
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as attention:
        fast(to_levels(x, torch.float32))
    return sum(
        n
        for counter, kind in ((convolutions, "convolution"), (attention, "bmm"))
        for name, n in counter.get_flop_counts()["Global"].items()
        if kind in str(name)
    )


def best_rate(channels: int, dtype: torch.dtype, device: str, clock: Callable[[], float]) -> float:
    """FLOP/s of a large matrix product or of a convolution of the trunk, whichever is faster."""
    a = torch.randn(2048, 2048, device=device, dtype=dtype)
    image = torch.randn(1, channels, 130, 130, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    speeds = []
    with torch.inference_mode():
        for run, n in (
            (lambda: a @ a, 2 * 2048**3),
            (lambda: torch.nn.functional.conv2d(image, kernel), 2 * 9 * channels**2 * 128**2),
        ):
            speeds.append(n / min(seconds(run, device, clock) for _ in range(10)))
    return max(speeds)


def seconds(run: Callable[[], object], device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Duration of one call, until the device has finished."""
    start = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return clock() - start


def psnr(image: np.ndarray, expected: np.ndarray) -> float:
    """PSNR in dB over all pixels and channels; infinite if the images are equal."""
    error = float(np.square(image.astype(float) - expected).mean())
    return 10 * np.log10(255**2 / error) if error else float("inf")


def load_tiles(bundle: Bundle, folder: Path | None, n: int) -> np.ndarray:
    """uint8 (n, tile, tile, 3): the first n images of the folder that are large enough, or cut from procedural tissue.

    Raises:
        SystemExit: no image is large enough.
    """
    side = bundle.tile
    if folder is None:
        speeds = math.ceil(math.sqrt(n))
        grid = field(bundle, speeds * side).reshape(speeds, side, speeds, side, 3)
        return np.ascontiguousarray(grid.swapaxes(1, 2).reshape(-1, side, side, 3)[:n])
    images = (np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.*")))
    large = list(islice((image[:side, :side] for image in images if min(image.shape[:2]) >= side), n))
    if not large:
        raise SystemExit(f"{folder} holds no image of at least {side} × {side} px")
    return np.stack(large)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiles", type=Path, help="folder of images; procedural histology if not given")
    parser.add_argument("--count", type=int, default=4, help="tiles")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time instead of wall time: for a CPU that others use, too"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    device, bundle = pick_device(options.device), Bundle.open(options.model)
    plain = load_generator(bundle.config.generator, bundle.weights_path).requires_grad_(False).to(device)
    tiles = load_tiles(bundle, options.tiles, options.count)[:, None]
    speeds = contenders(bundle, plain, device)
    painted = {name: [run(tile) for tile in tiles] for name, run in speeds.items()}  # warms up, too
    times: dict[str, list[float]] = {name: [] for name in speeds}
    for i in range(options.rounds):
        for name, run in speeds.items():
            times[name].append(seconds(lambda run=run, i=i: run(tiles[i % len(tiles)]), device, clock))
    first = next(iter(speeds))
    how = f"{options.threads} threads, {'processor' if options.cpu_time else 'wall'} time, torch {torch.__version__}"
    print(f"{bundle.name} {bundle.version}, {bundle.tile}² px, {device}, {how}\n")
    print("| | tiles/s | × plain | least PSNR, dB |\n|---|---|---|---|")
    for name in speeds:
        ratio = statistics.median(a / b for a, b in zip(times[first], times[name], strict=True))
        least = min(psnr(a, b) for a, b in zip(painted[name], painted[first], strict=True))
        print(f"| {name} | {1 / statistics.median(times[name]):.2f} | {ratio:.2f} | {least:.1f} |")
    work = flops(plain, tiles[0], device)
    for precision in ("fp32", "bf16"):
        rate = best_rate(4 * bundle.config.generator.channels, DTYPES[precision], device, clock)
        floor = rate / work
        ratio = floor * statistics.median(times[first])
        print(
            f"| floor, {precision}: {work / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s | {floor:.2f} | {ratio:.2f} | |"
        )


if __name__ == "__main__":
    main()
