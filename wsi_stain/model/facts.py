"""Measures what an imported network does: how far it looks, whether statistics of its tile change it, its speed."""

from __future__ import annotations

import math
import time
from collections.abc import Generator as Generation
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from wsi_stain.config.convert import PrecisionChoice
from wsi_stain.config.network import NetworkFacts
from wsi_stain.geometry import Box, Size
from wsi_stain.model.bundle import Bundle, TileGenerator
from wsi_stain.model.tile_tolerance import field

AGREEMENT_TILES = 8
AGREEMENT_PX = 256
"""Side of the tiles on which the bundle is compared with its source, unless a graph takes one size only."""
SAME_DB = 99.0
"""PSNR of equal images."""
CALIBRATION = 4
"""Tiles of procedural histology on which statistics are measured for the other figures."""
BACKGROUND = 245
"""Empty slide in H&E."""


@contextmanager
def calibrated(bundle: Bundle, precision: PrecisionChoice = "fp32") -> Generation[TileGenerator]:
    """The generator on the CPU, with frozen statistics if it has those of tiles, as `convert` runs it."""
    if not bundle.has_tile_statistics:
        yield bundle.generator("cpu", precision=precision)
        return
    with TemporaryDirectory() as folder:
        file = Path(folder, "norm.safetensors")
        file.write_bytes(bundle.measure_statistics(_fields(bundle, bundle.tile, CALIBRATION)))
        yield bundle.generator("cpu", precision=precision, statistics=file)


def facts(bundle: Bundle, generator: TileGenerator, agreement_db: float) -> NetworkFacts:
    """What was measured, except the difference of tiles from one pass (`tile_tolerance`).

    Args:
        bundle: an imported network.
        generator: from `calibrated`.
        agreement_db: from `agreement`.
    """
    tile = _fields(bundle, bundle.tile, 1)[0]
    start = time.perf_counter()
    stained = generator(tile[None])[0]
    seconds = time.perf_counter() - start
    own = reach(bundle.generator("cpu", precision="fp32"), tile) if bundle.has_tile_statistics else 0
    return NetworkFacts(
        reach=reach(generator, tile, stained),
        tile_statistics=own >= bundle.tile // 2,
        agreement_db=round(agreement_db, 1),
        seconds_per_tile=round(seconds, 3),
        device="cpu",
    )


def reach(generator: TileGenerator, tile: np.ndarray, stained: np.ndarray | None = None) -> int:
    """The distance in px beyond which a change of the input changes no output byte.

    Each half of the tile is inverted in turn. The result is the length of half a tile if the change reaches its edge.

    Args:
        generator: to examine.
        tile: uint8 (tile, tile, 3).
        stained: its output for the tile, if known.
    """
    before = generator(tile[None])[0] if stained is None else stained
    middle, farthest = tile.shape[0] // 2, 0
    for turns in range(4):  # np.rot90 brings each side to the left in turn
        changed = np.rot90(tile, turns).copy()
        changed[:, :middle] = 255 - changed[:, :middle]
        other = np.rot90(generator(np.ascontiguousarray(np.rot90(changed, -turns))[None])[0], turns)
        differs = (other != np.rot90(before, turns)).any(axis=(0, 2)).nonzero()[0]
        farthest = max(farthest, int(differs[-1]) + 1 - middle if len(differs) else 0)
    return farthest


def agreement(bundle: Bundle) -> float:
    """The lowest PSNR in dB of the bundle against its source network, over random tiles; both in float32.

    The source of a state dict is the network as its paper describes it, layer by layer; that of an ONNX file is
    onnxruntime without its optimisations.
    """
    network = bundle.config.network
    assert network is not None, "only an imported network has a source"
    ours, source = bundle.generator("cpu", precision="fp32"), _source(bundle)
    # A U-Net takes no smaller tiles than its name states, and a graph may take one size only.
    side = bundle.tile if network.kind == "onnx" else min(bundle.tile, max(AGREEMENT_PX, network.multiple))
    tiles = _fields(bundle, side, AGREEMENT_TILES)
    return min(psnr(ours(tile[None]), source(tile[None])) for tile in tiles)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR in dB of two uint8 arrays; `SAME_DB` if they are equal."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return SAME_DB if error == 0 else min(SAME_DB, 10 * math.log10(255**2 / error))


def background(bundle: Bundle, generator: TileGenerator) -> tuple[int, ...]:
    """The colour (R, G, B), or the value of each channel, that the network gives to the middle of an empty tile."""
    stained = generator(np.full((1, bundle.tile, bundle.tile, 3), BACKGROUND, np.uint8))[0]
    quarter = bundle.tile // 4
    middle = stained[quarter:-quarter, quarter:-quarter].reshape(-1, stained.shape[2])
    return tuple(np.median(middle, axis=0).round().astype(int).tolist())


def _source(bundle: Bundle) -> TileGenerator:
    network = bundle.config.network
    assert network is not None, "only an imported network has a source"
    if network.kind == "onnx":
        from wsi_stain.graphs.session import OnnxGenerator, open_graph

        graph = open_graph(bundle.weights_path, network)
        return OnnxGenerator(graph.model.SerializeToString(), graph, network, optimise=False)
    from wsi_stain.nn.inference import PlainGenerator, load_published

    return PlainGenerator(load_published(network, bundle.weights_path))


def _fields(bundle: Bundle, side: int, count: int) -> list[np.ndarray]:
    """Tiles of procedural histology."""
    columns = math.ceil(math.sqrt(count))
    whole = field(bundle, columns * side)
    boxes = [Box.at(side * (i // columns), side * (i % columns), Size(side, side)) for i in range(count)]
    return [np.ascontiguousarray(whole[box.slices()]) for box in boxes]
