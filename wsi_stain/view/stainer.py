"""Stains what is being looked at: the newest view first, from its centre outwards, a tile at a time.

view      tiles under it, nearest to its centre first → whole blocks, as soon as all their tiles are stained
region    the same for a part of the slide, block by block, while nobody looks at anything unstained
zoomed out: nothing; looking at a whole slide must not start hours of work
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

from wsi_stain.errors import WsiStainError, counted
from wsi_stain.geometry import Box
from wsi_stain.tiling.grid import Block, painting_order
from wsi_stain.view.painting import Painting

log = logging.getLogger(__name__)

MOST_PX = 8 << 20
"""Largest view that is stained, in px of the output: a full screen at up to twice the model's µm/px."""
REMEMBERED = 4096
"""Number of changes that a page may miss before it loads all tiles again."""
IDLE_S = 2.0
"""Interval between looks at the blocks that another process paints."""
AT_ONCE = 8
"""Tiles per step on a device other than the CPU."""


@dataclass(slots=True)
class Region:
    """A part of the slide that the user wants stained."""

    box: Box
    """In the output's frame."""
    waiting: set[Box]
    """Tissue tiles that are not stained yet, in the view's frame."""
    total: int
    seconds: list[float] = field(default_factory=list)
    """Time per tile of the last steps."""

    @property
    def left_s(self) -> float | None:
        """Estimate of the time until it is done; None before the first tile."""
        return len(self.waiting) * sum(self.seconds) / len(self.seconds) if self.seconds else None


class Stainer:
    """A thread that decides what the painting thread does next; all methods may be called from any thread.

    stainer.look("page 1", box)      # the view of a page; None if it is closed
    stainer.stain(box)               # a region, or everything
    stainer.changes(since)           # what to load again
    """

    def __init__(self, painting: Painting) -> None:
        self.painting = painting
        self.device = ""
        self.error = ""
        """Why staining stopped; empty if it did not."""
        self._looks: OrderedDict[str, Box] = OrderedDict()
        self._region: Region | None = None
        self._changes: deque[tuple[int, Box]] = deque(maxlen=REMEMBERED)
        self._version = 0
        self._wake, self._is_closed = threading.Condition(), False
        self._stained: set[Box] = set()
        """Tiles that are known to be stained, alone or in a painted block."""
        for index in painting.painted:
            self._stained.update(painting.tiles_of(painting.blocks[index]))
        self._thread = threading.Thread(target=self._run, name="stainer")
        self._thread.start()

    def look(self, client: str, box: Box | None) -> None:
        """What a page shows, in the output's frame; None if it shows nothing, or too much to stain."""
        with self._wake:
            self._looks.pop(client, None)
            if box is not None and 0 < (box & self._whole).area <= MOST_PX:
                self._looks[client] = box & self._whole
            self._wake.notify()

    def stain(self, box: Box | None = None) -> None:
        """Stain a region, or everything; replaces the region in work."""
        box = self._whole if box is None else box & self._whole
        tiles: set[Box] = set()
        for block in self._unpainted(box):
            tiles.update(self.painting.tiles_of(block))
        waiting = {tile for tile in tiles if not self._is_stained(tile)}
        with self._wake:
            self.error = ""
            self._region = Region(box, waiting, max(1, len(waiting)))
            self._wake.notify()

    def stop(self) -> None:
        """Forget the region; the views are still stained."""
        with self._wake:
            self._region = None
            self._version += 1

    def state(self) -> dict[str, Any]:
        """What the page reports."""
        painting, region = self.painting, self._region
        done, total = len(self._stained), painting.survey.tissue_tiles
        return {
            "version": self._version,
            "share": done / total if total else len(painting.painted) / len(painting.blocks),
            "complete": len(painting.painted) == len(painting.blocks),
            "device": self.device,
            "blocked": painting.blocked,
            "error": self.error,
            "region": None if region is None else _report(region),
            "looks": len(self._looks),
        }

    @property
    def version(self) -> int:
        """Grows with every change."""
        return self._version

    def changes(self, since: int) -> list[Box]:
        """What has changed since a version, in the output's frame; everything, if that is too long ago."""
        with self._wake:
            if len(self._changes) == REMEMBERED and since < self._changes[0][0]:
                return [self._whole]
            return [box for version, box in self._changes if version > since]

    def close(self) -> None:
        """End after the tile in work."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    @property
    def _whole(self) -> Box:
        return Box.of(self.painting.job.grid.region.size)

    def _run(self) -> None:
        while True:
            with self._wake:
                if self._is_closed:
                    return
            try:
                is_idle = not self._step()
            except CancelledError:
                return
            except (WsiStainError, OSError, RuntimeError, MemoryError) as err:
                if self._is_closed:
                    return
                self._fail(err)
                is_idle = True
            with self._wake:
                if is_idle and not self._is_closed:
                    self._wake.wait(IDLE_S)

    def _fail(self, err: Exception) -> None:
        log.warning("staining stopped: %s", err, exc_info=not isinstance(err, WsiStainError | OSError))
        with self._wake:
            self.error = str(err)
            self._region = None
            self._looks.clear()
            self._version += 1

    def _step(self) -> bool:
        """Do the most urgent piece of work; False if there is none."""
        if self.painting.blocked:
            blocks = [self.painting.blocks[index] for index in self.painting.refresh()]
            for block in blocks:
                self._stained.update(self.painting.tiles_of(block))
            if blocks:
                self._changed(map(self._box_of, blocks))
            return False
        if not self.device:
            self.device = self.painting.load().result()
            self._changed([])
        with self._wake:
            views, region = list(reversed(self._looks.values())), self._region
        for box in views:
            if self._work_on(box, self._nearest(self._unpainted(box), box)):
                return True
        if region is None:
            return False
        blocks = painting_order(self._unpainted(region.box))
        if self._work_on(None, blocks[:1]):
            return True
        with self._wake:
            if self._region is region:
                self._region = None
                self._version += 1
        return False

    def _work_on(self, view: Box | None, blocks: list[Block]) -> bool:
        """Paint a block whose tiles are all stained, or stain tiles: those under the view first."""
        tiles: list[Box] = []
        for block in blocks:
            missing = [tile for tile in self.painting.tiles_of(block) if not self._is_stained(tile)]
            if not missing:
                self.painting.paint(block.index).result()
                self._changed([self._box_of(block)])
                return True
            tiles += missing
        if not tiles:
            return False
        if view is not None:
            frame = view.shift(self.painting.job.grid.region.y0, self.painting.job.grid.region.x0)
            tiles = sorted(set(tiles), key=lambda tile: (not (tile & frame).area, _distance(tile, frame)))
        self._stain(tiles[: 1 if self.device == "cpu" else AT_ONCE])
        return True

    def _stain(self, tiles: list[Box]) -> None:
        start = time.perf_counter()
        self.painting.stain_ahead(tiles).result()
        seconds = (time.perf_counter() - start) / len(tiles)
        self._stained.update(tiles)
        with self._wake:
            if self._region is not None:
                self._region.waiting.difference_update(tiles)
                self._region.seconds = [*self._region.seconds[-31:], seconds]
        grid = self.painting.job.grid
        self._changed([grid.in_output(tile & grid.region) for tile in tiles])

    def _unpainted(self, box: Box) -> list[Block]:
        return [block for block in self.painting.touching(box) if block.index not in self.painting.painted]

    def _nearest(self, blocks: list[Block], view: Box) -> list[Block]:
        return sorted(blocks, key=lambda block: _distance(self._box_of(block), view))

    def _is_stained(self, tile: Box) -> bool:
        if tile not in self._stained and self.painting.is_ahead(tile):
            self._stained.add(tile)
        return tile in self._stained

    def _box_of(self, block: Block) -> Box:
        return self.painting.job.grid.in_output(block.write)

    def _changed(self, boxes: Iterable[Box]) -> None:
        with self._wake:
            self._version += 1
            self._changes.extend((self._version, box) for box in boxes)


def _distance(box: Box, view: Box) -> float:
    """Squared distance between the centres, in quarter px."""
    y, x = box.y0 + box.y1 - view.y0 - view.y1, box.x0 + box.x1 - view.x0 - view.x1
    return y * y + x * x


def _report(region: Region) -> dict[str, Any]:
    done = region.total - len(region.waiting)
    return {"done": done, "total": region.total, "left_s": region.left_s, "text": counted(region.total, "tile")}
