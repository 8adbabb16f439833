"""The canvas of an OME-Zarr 0.5; the canvas becomes the output.

Chunks are written as files, not through zarr-python: a chunk of Zarr v3 with the codecs `bytes` and `zstd` is just the
compressed pixels, and the engine needs the bytes to store their CRC. zarr-python writes the metadata.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from wsi_stain.files.atomic import atomic_write, rename
from wsi_stain.geometry import Box
from wsi_stain.output.canvas import REMAINS, BlockStore, CanvasSpec, beside, claim, gather, nothing, pack_remains
from wsi_stain.output.encoding import TILE_PX, pad_tile, split
from wsi_stain.output.ometiff.xmp import source_type
from wsi_stain.output.pyramid import Pyramid, TileAt
from wsi_stain.tiling.grid import Block

ZSTD_LEVEL = 1
"""Higher levels save little on stained tissue and cost most of the time."""

CHUNKS = "chunks.json"
"""Member of a block's file: the CRC-32 of every chunk it wrote, so that a resume detects chunks lost in a power cut."""


class ZarrCanvas:
    """Painted blocks of an OME-Zarr, in `<output>.part`, a valid group at any time during painting.

    Axes are c, y, x; chunks 3 × 512 × 512, or 1 × 512 × 512 for fluorescence channels; zstd. Background is the fill
    value if it is equal in all channels, and then takes no space. `<output>.spool` holds a file for each painted block,
    with its remains.

        canvas = ZarrCanvas(spec)
        canvas.begin(fingerprint)
        for block in canvas.todo(blocks):
            canvas.put(block, paint(block), {})
        canvas.publish(facts)                       # gives it its final name
    """

    def __init__(self, spec: CanvasSpec) -> None:
        self._spec = spec
        self.pyramid = Pyramid(spec.size, spec.block)
        self.store = BlockStore(spec.spool, self.pyramid, spec.background)

    def begin(self, fingerprint: Mapping[str, Any], restart: bool = False) -> None:
        """Start, or resume a run of the same fingerprint; raises `OutputError` if the folder belongs to another run."""
        if claim(self.store, fingerprint, restart=restart) and self._is_ours():
            return
        part = self._spec.part
        if part.exists():
            shutil.rmtree(part)
        self.create_group(part)
        self.store.begin(fingerprint)

    def put(self, block: Block, pixels: np.ndarray | None, notes: Mapping[str, Any]) -> None:
        """Write a block's chunks of all levels it owns, then mark it as painted."""
        tiles = list(self._background_tiles(block) if pixels is None else self.pyramid.cut(block.index, pixels))
        chunks = dict(crc for tile in tiles if tile.level <= self.pyramid.depth for crc in self._write_chunks(tile))
        members = [(CHUNKS, json.dumps(chunks, sort_keys=True).encode())]
        members += [(REMAINS, pack_remains(tile.pixels)) for tile in tiles if tile.level > self.pyramid.depth]
        self.store.put(block.index, members, notes)

    def todo(self, blocks: Iterable[Block]) -> list[Block]:
        """The blocks that are not painted, or whose file or chunks are damaged; only looks."""
        return [block for block in blocks if not (self.store.is_painted(block.index) and self._is_whole(block.index))]

    def read(self, box: Box) -> np.ndarray:
        """A box of the finest level, in the output's frame."""
        return gather(box, partial(self.tile, 0), len(self.store.background))

    def tile(self, level: int, row: int, column: int) -> np.ndarray:
        """A tile of a painted block, uint8 (512, 512, C); `level` is at most `pyramid.depth`."""
        values, samples = self.store.background, self._spec.samples
        paths = [self._root / key_of(level, row, column, plane) for plane in range(len(values) // samples)]
        if not paths[0].exists():
            return np.full((TILE_PX, TILE_PX, len(values)), values, np.uint8)
        planes = [np.frombuffer(imagecodecs.zstd_decode(path.read_bytes()), np.uint8) for path in paths]
        return np.concatenate(planes).reshape(-1, TILE_PX, TILE_PX).transpose(1, 2, 0)

    def jpeg(self, level: int, row: int, column: int) -> bytes | None:
        """None: chunks are lossless."""

    def publish(
        self, facts: Mapping[str, str], unreadable: Sequence[Box] = (), on_check: Callable[[], None] = nothing
    ) -> None:
        """Add the facts to the group, write its coarse levels, and give it its final name.

        An OME-Zarr has no place for unreadable tiles, which are in the run record, and no check.
        """
        self._annotate(facts)
        self.finish()

    def finish(self) -> None:
        """Write the coarse levels and give the group its final name."""
        output, old = self._spec.output, beside(self._spec.output, ".old")
        if self._root == self._spec.part:
            if self.pyramid.is_deep:
                for tile in self.pyramid.coarse(self.store.strips()):
                    dict(self._write_chunks(tile))
            if output.exists():
                shutil.rmtree(old, ignore_errors=True)  # left by a run that was killed here
                rename(output, old)
            rename(self._spec.part, output)
        shutil.rmtree(old, ignore_errors=True)

    def _annotate(self, facts: Mapping[str, str]) -> None:
        """Add facts that are known only after painting to the provenance attributes."""
        path = self._root / "zarr.json"
        group = json.loads(path.read_text(encoding="utf-8"))
        group["attributes"]["wsi_stain"] |= facts
        atomic_write(path, json.dumps(group, indent=2))

    @property
    def _root(self) -> Path:
        """Path of the group: after a run was killed behind the last rename, it has its final name."""
        return self._spec.part if self._spec.part.exists() else self._spec.output

    def _is_ours(self) -> bool:
        """Whether the group exists and belongs to this run: a user may have deleted `<output>.part` only."""
        try:
            group = json.loads((self._root / "zarr.json").read_text(encoding="utf-8"))
            stored, ours = group["attributes"], self._attributes()
            return stored["ome"] == ours["ome"] and ours["wsi_stain"].items() <= stored["wsi_stain"].items()
        except (FileNotFoundError, ValueError, KeyError):
            return False

    @cached_property
    def _fills(self) -> bool:
        """Whether a missing chunk is read as background."""
        return len(set(self.store.background)) == 1

    def _background_tiles(self, block: Block) -> Iterator[TileAt]:
        if not self._fills:
            values = self.store.background
            background = np.full((*block.write.size, len(values)), values, np.uint8)
            yield from (tile for tile in self.pyramid.cut(block.index, background) if tile.level <= self.pyramid.depth)

    def _write_chunks(self, tile: TileAt) -> Iterator[tuple[str, int]]:
        """Write the chunks of a tile; gives the key and the CRC-32 of each."""
        for plane, pixels in enumerate(split(pad_tile(tile.pixels), self._spec.samples)):
            data = imagecodecs.zstd_encode(pixels.transpose(2, 0, 1).tobytes(), level=ZSTD_LEVEL)
            key = key_of(tile.level, tile.row, tile.column, plane)
            path = self._root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)  # a partial chunk is harmless: its block is not marked as painted yet
            yield key, zlib.crc32(data)

    def _is_whole(self, index: tuple[int, int]) -> bool:
        try:
            with self.store.open(index) as file:
                chunks = json.loads(file.read(CHUNKS))
            return all(zlib.crc32((self._root / key).read_bytes()) == crc for key, crc in chunks.items())
        except FileNotFoundError:
            return False

    def create_group(self, path: Any) -> None:
        """Write the metadata of the group and its arrays, without pixels, to a folder or a Zarr store."""
        import zarr  # slow to import, and needed only at the start of a run
        from zarr.codecs import ZstdCodec

        group = zarr.create_group(path, zarr_format=3, attributes=self._attributes())
        for level, size in enumerate(self.pyramid.sizes):
            group.create_array(
                str(level),
                shape=(len(self.store.background), *size),
                chunks=(self._spec.samples, TILE_PX, TILE_PX),
                dtype="uint8",
                compressors=ZstdCodec(level=ZSTD_LEVEL),
                fill_value=self.store.background[0] if self._fills else 0,
                dimension_names=("c", "y", "x"),
            )

    def _attributes(self) -> dict[str, Any]:
        """OME-Zarr 0.5 metadata, and the provenance of the image."""
        mpp = self._spec.mpp
        unit = {} if mpp is None else {"unit": "micrometer"}
        datasets = []
        for level in range(len(self.pyramid.sizes)):
            step = (mpp or 1.0) * 2**level
            transform = {"type": "scale", "scale": [1.0, step, step]}
            datasets.append({"path": str(level), "coordinateTransformations": [transform]})
        axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", **unit} for n in "yx")]
        scale = {"name": self._spec.output.name, "axes": axes, "datasets": datasets, "type": "mean"}
        colours = {"Red": "FF0000", "Green": "00FF00", "Blue": "0000FF"}
        if self._spec.channels:
            colours = {channel.name: channel.hex for channel in self._spec.channels}
        window = {"min": 0, "start": 0, "end": 255, "max": 255}
        channels = [{"label": k, "color": v, "active": True, "window": window} for k, v in colours.items()]
        ours = dict(self._spec.provenance)
        omero = {"channels": channels, "rdefs": {"model": "color"}}
        return {
            "ome": {"version": "0.5", "multiscales": [scale], "omero": omero},
            "wsi_stain": {**ours, "digital_source_type": source_type(ours)},
        }


def key_of(level: int, row: int, column: int, plane: int = 0) -> str:
    """Path of a chunk in the group (Zarr v3, default chunk key encoding)."""
    return f"{level}/c/{plane}/{row}/{column}"
