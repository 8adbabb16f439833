"""Writes the network of a bundle as one ONNX graph, for software without torch."""

from __future__ import annotations

from pathlib import Path

from wsi_stain.errors import BundleError
from wsi_stain.files.atomic import atomic_write
from wsi_stain.model.bundle import Bundle

MOST_TILE = 512
"""Side in px up to which a graph is made unasked: every attention window has nodes of its own, and larger graphs have
more of them than are admitted at import."""


def export_graph(name: Path | str, file: Path, tile: int | None = None) -> None:
    """Write the network of a bundle as an ONNX graph; see `nn.onnx_twin.twin`.

    Args:
        name: of a shipped bundle, or its folder.
        file: to write.
        tile: side of its tiles in px; by default that of the bundle, but at most `MOST_TILE`.

    Raises:
        BundleError: the bundle holds no network of ours, the tile does not suit it, the file exists or does not end in
            .onnx, or the package onnx is missing.
    """
    bundle = Bundle.open(name)
    side = tile_of_graph(bundle, tile)
    if file.suffix != ".onnx":
        raise BundleError(f"{file} must end in .onnx; choose another name")
    if file.exists():
        raise BundleError(f"{file} already exists; choose another name, or remove it first")
    atomic_write(file, graph_of(bundle, side))


def tile_of_graph(bundle: Bundle, tile: int | None) -> int:
    """The side in px of the tiles of the bundle's graph.

    Args:
        bundle: to export.
        tile: side that was asked for, if any.

    Raises:
        BundleError: the bundle holds no network of ours, or the tile does not suit it.
    """
    side = tile or min(bundle.tile, MOST_TILE // bundle.multiple * bundle.multiple)
    if bundle.config.generator.kind != "ceff" or bundle.has_tile_statistics:
        raise BundleError(
            f"{bundle.name} has no network of ours with frozen statistics; export it where it was trained"
        )
    if side < 1 or side % bundle.multiple:
        raise BundleError(f"--tile is {side}: it must be a multiple of {bundle.multiple} px")
    return side


def graph_of(bundle: Bundle, side: int) -> bytes:
    """The ONNX graph of a bundle's network, for tiles of `side` px that `tile_of_graph` accepts.

    Raises:
        BundleError: the package onnx is missing.
    """
    from wsi_stain.graphs.admit import import_onnx
    from wsi_stain.nn.inference import load_generator
    from wsi_stain.nn.onnx_twin import twin

    import_onnx()  # torch needs it, too, but says so in a traceback
    return twin(load_generator(bundle.config.generator, bundle.weights_path), side)
