"""The checkpoint of a conversion: which blocks are painted and which are missing.

A canvas keeps a folder `<output>.spool` next to the output with one file per painted block. Block files are created
atomically by rename, so a run that was killed at any moment resumes with the blocks whose files are missing.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import imagecodecs
import numpy as np

from wsi_stain.config.channels import Channel
from wsi_stain.config.convert import OutputConfig
from wsi_stain.errors import OutputError
from wsi_stain.files.atomic import atomic_write, is_temporary
from wsi_stain.geometry import Box, Size
from wsi_stain.output.encoding import TILE_PX
from wsi_stain.output.pyramid import Pyramid
from wsi_stain.tiling.grid import Block

REMAINS = "remains"
"""Member of a block's file: its pixels at the first level at which it owns no whole tile, lossless."""


def nothing() -> None:
    """For callers that do not follow the steps of `publish`."""


class Canvas(Protocol):
    """Where blocks are painted, and what publishes them; `store` holds the lock and the fingerprint of the run.

    Blocks come in the view's frame, of which the canvas needs the indices only; all other boxes are in the output's
    frame.
    """

    store: BlockStore

    def tile(self, level: int, row: int, column: int) -> np.ndarray:
        """A tile of a painted block, uint8 (512, 512, C) as a viewer decodes it; `level` is at most `pyramid.depth`."""
        ...

    def jpeg(self, level: int, row: int, column: int) -> bytes | None:
        """The same tile as the output will hold it; None if that is not a JPEG."""
        ...

    def read(self, box: Box) -> np.ndarray:
        """A box of the finest level, of painted blocks: uint8 (h, w, C) as a viewer decodes it."""
        ...

    def put(self, block: Block, pixels: np.ndarray | None, notes: Mapping[str, Any]) -> None:
        """Encode and keep a block: uint8 (h, w, C), or None if it is all background; `notes` survive a resume."""
        ...

    def todo(self, blocks: Iterable[Block]) -> list[Block]:
        """The blocks that are not painted, or whose file is damaged; only looks."""
        ...

    def begin(self, fingerprint: Mapping[str, Any], restart: bool = False) -> None:
        """Start, or resume a run of the same fingerprint."""
        ...

    def publish(
        self, facts: Mapping[str, str], unreadable: Sequence[Box] = (), on_check: Callable[[], None] = nothing
    ) -> None:
        """Turn the painted blocks into the output under its final name; every block must be painted.

        Args:
            facts: texts for the metadata that are known only after painting.
            unreadable: tiles that are background because the source could not be read, for the metadata.
            on_check: called before the output is checked, if its format has a check.

        Raises:
            OutputError: the output fails its check.
        """
        ...


@dataclass(frozen=True, slots=True)
class CanvasSpec:
    """Everything a worker needs to open a canvas."""

    output: Path
    """The final name of the output."""
    size: Size
    block: int
    """Side of a block in px."""
    background: tuple[int, ...]
    """One value for each channel of a pixel."""
    encoding: OutputConfig = field(default_factory=OutputConfig)
    """Encoding of the tiles of an OME-TIFF; an OME-Zarr is always lossless."""
    mpp: float | None = None
    """µm per px of level 0."""
    provenance: tuple[tuple[str, str], ...] = ()
    """Texts that describe how the output was made, for its metadata."""
    magnification: float | None = None
    """For viewers; written into an OME-TIFF."""
    stain: str = ""
    """Name of the stain, as in the metadata of an OME-TIFF."""
    uuid: str = ""
    """`urn:uuid` of an OME-TIFF; equal for equal fingerprints."""
    channels: tuple[Channel, ...] = ()
    """Fluorescence channels of the pixels; empty for colours."""

    @property
    def samples(self) -> Literal[1, 3]:
        """Values of a pixel that are stored together: all colours, or one channel."""
        return 1 if self.channels else 3

    @property
    def spool(self) -> Path:
        """The folder of the painted blocks."""
        return beside(self.output, ".spool")

    @property
    def part(self) -> Path:
        """The path of the unfinished output."""
        return beside(self.output, ".part")


def beside(path: Path, suffix: str) -> Path:
    """The path with `suffix` appended to its name."""
    return path.with_name(path.name + suffix)


class BlockStore:
    """The folder of block files: `b_<row>_<column>.zip`, stored, each member with its CRC.

    `run.json` holds the fingerprint of the run; it is written last, so a folder without it holds no started run.
    """

    def __init__(self, folder: Path, pyramid: Pyramid, background: tuple[int, ...]) -> None:
        self.folder, self.pyramid, self.background = folder, pyramid, background

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        """The settings of the run that this folder belongs to; None if it is missing or unreadable."""
        try:
            return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def begin(self, fingerprint: Mapping[str, Any]) -> None:
        """Write the fingerprint: from here on, painted blocks are kept."""
        self.write("run.json", json.dumps(fingerprint, indent=1, sort_keys=True).encode())

    def clear(self) -> None:
        """Delete everything except the lock."""
        (self.folder / "run.json").unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()

    def sweep(self) -> None:
        """Delete temporary files of killed writers (`tmp-*` of version 0.1); only for the holder of the lock."""
        for path in self.folder.iterdir():
            if is_temporary(path) or path.name.startswith("tmp-"):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder: the output is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, name: str, data: bytes, *, sync: bool = True) -> None:
        """Write a file of the folder atomically; files with a checksum need no `sync`."""
        atomic_write(self.folder / name, data, sync=sync)

    def put(self, index: tuple[int, int], members: Iterable[tuple[str, bytes]], notes: Mapping[str, Any]) -> None:
        """Write a block's file: its members, and its notes (JSON)."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
            file.writestr(_member("notes.json"), json.dumps(notes, sort_keys=True))
            for name, data in members:
                file.writestr(_member(name), data)
        self.write(_name(index), buffer.getvalue(), sync=False)

    def open(self, index: tuple[int, int]) -> zipfile.ZipFile:
        """A painted block's file."""
        return zipfile.ZipFile(self.folder / _name(index))

    def exists(self, index: tuple[int, int]) -> bool:
        """Whether the block's file exists; `is_painted` also verifies it."""
        return (self.folder / _name(index)).exists()

    def is_painted(self, index: tuple[int, int]) -> bool:
        """Whether the block's file exists and is intact."""
        try:
            with zipfile.ZipFile(self.folder / _name(index)) as file:
                return file.testzip() is None and "notes.json" in file.namelist()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, zlib.error):
            return False  # a damaged zip directory can raise any of these

    def discard(self, index: tuple[int, int]) -> None:
        """Delete the block's file, if there is one; only for the holder of the lock."""
        (self.folder / _name(index)).unlink(missing_ok=True)

    def indices(self) -> Iterator[tuple[int, int]]:
        """All blocks, row by row."""
        rows, columns = self.pyramid.blocks
        yield from ((row, column) for row in range(rows) for column in range(columns))

    def notes(self) -> Iterator[dict[str, Any]]:
        """The notes of all painted blocks, row by row."""
        for index in self.indices():
            try:
                with self.open(index) as file:
                    yield json.loads(file.read("notes.json"))
            except FileNotFoundError:
                continue

    def remains(self, index: tuple[int, int]) -> np.ndarray:
        """A painted block at the first coarse level (`pyramid.depth` + 1), uint8 (≤ 256, ≤ 256, C)."""
        level = self.pyramid.depth + 1
        side, size = self.pyramid.block >> level, self.pyramid.sizes[level]
        box = Box.at(index[0] * side, index[1] * side, Size(side, side)) & Box.of(size)
        part = np.empty((*box.size, len(self.background)), np.uint8)
        with self.open(index) as file:
            part[:] = unpack_remains(file.read(REMAINS), part) if REMAINS in file.NameToInfo else self.background
        return part

    def strips(self) -> Iterator[np.ndarray]:
        """The first coarse level from top to bottom, one row of remains at a time, uint8 (≤ 256, w, C)."""
        size, side = self.pyramid.sizes[self.pyramid.depth + 1], self.pyramid.block >> (self.pyramid.depth + 1)
        rows, columns = self.pyramid.blocks
        for row in range(rows):
            strip = np.empty((min(side, size.h - side * row), size.w, len(self.background)), np.uint8)
            for column in range(columns):
                strip[:, column * side : (column + 1) * side] = self.remains((row, column))
            yield strip


def gather(box: Box, tile_at: Callable[[int, int], np.ndarray], channels: int = 3) -> np.ndarray:
    """A box of a level, in the output's frame, from 512×512 tiles decoded by `tile_at(row, column)`."""
    out = np.empty((*box.size, channels), np.uint8)
    for row in range(box.y0 // TILE_PX, -(-box.y1 // TILE_PX)):
        for column in range(box.x0 // TILE_PX, -(-box.x1 // TILE_PX)):
            tile = Box.at(row * TILE_PX, column * TILE_PX, Size(TILE_PX, TILE_PX))
            part = tile & box
            pixels = tile_at(row, column)[part.shift(-tile.y0, -tile.x0).slices()]
            out[part.shift(-box.y0, -box.x0).slices()] = pixels
    return out


def pack_remains(pixels: np.ndarray) -> bytes:
    """Compress remains for `unpack_remains`."""
    return bytes(imagecodecs.zstd_encode(pixels.tobytes(), level=1))


def unpack_remains(data: bytes, like: np.ndarray) -> np.ndarray:
    """A block's remains, in the shape of `like`."""
    return np.frombuffer(imagecodecs.zstd_decode(data), np.uint8).reshape(like.shape)


def claim(store: BlockStore, fingerprint: Mapping[str, Any], *, restart: bool) -> bool:
    """Whether the folder already holds a run of this fingerprint; if not, the folder is emptied.

    Raises:
        OutputError: the folder holds blocks of other settings.
    """
    store.folder.mkdir(exist_ok=True)
    store.sweep()
    existing = store.fingerprint
    if existing == json.loads(json.dumps(fingerprint)) and not restart:
        return True
    if existing is not None and not restart:
        changed = ", ".join(sorted(k for k in {*existing, *fingerprint} if existing.get(k) != fingerprint.get(k)))
        raise OutputError(
            f"{store.folder} holds an unfinished run with other settings ({changed}); re-run that command to resume "
            "it, or add --restart to discard it"
        )
    store.clear()
    return False


def _name(index: tuple[int, int]) -> str:
    return f"b_{index[0]}_{index[1]}.zip"


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name)  # without a date: equal blocks give equal files
