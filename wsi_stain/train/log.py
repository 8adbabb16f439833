"""Logs of a training: lines in log.jsonl, the same scalars for TensorBoard, and sample pictures."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from wsi_stain.errors import TrainingError
from wsi_stain.files.atomic import atomic_write

LOG = "log.jsonl"
WINDOW = 20
"""Steps averaged in one log line."""


class RunLog:
    """Writes log.jsonl, tensorboard/ and samples/ of a run; a context manager.

    Args:
        folder: the run folder.
        images: images seen when this process starts; log lines of later steps are dropped, as they will be repeated.
        is_on: whether this process writes; only one of several does.
    """

    def __init__(self, folder: Path, images: int, *, is_on: bool = True) -> None:
        self._folder = folder
        self._window: list[dict[str, float]] = []
        self._board = None
        if is_on:
            from torch.utils.tensorboard import SummaryWriter

            _cut(folder / LOG, images)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=images + 1 if images else None)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def add(
        self, images: int, rate: float, waiting: float, losses: dict[str, float], *, is_last_of_window: bool
    ) -> None:
        """Record the losses of a step; write a line of means every `WINDOW` steps and before each checkpoint."""
        self._window.append(losses)
        if self._board is None or not (is_last_of_window or len(self._window) == WINDOW):
            return
        means = {name: round(float(np.mean([x[name] for x in self._window if name in x])), 6) for name in losses}
        self._window = []
        line = {"images": images, "images_per_s": round(rate, 3), "waiting": round(waiting, 4), **means}
        with (self._folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if name != "images":
                self._board.add_scalar(name, value, images)

    def picture(self, images: int, picture: np.ndarray) -> None:
        """Save a sample picture, uint8 (h, w, 3)."""
        folder = self._folder / "samples"
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{images:09d}.png")
        if self._board is not None:
            self._board.add_image("samples", picture, images, dataformats="HWC")


def _cut(log: Path, images: int) -> None:
    """Drop log lines of steps after the checkpoint, which will be repeated, and a last line truncated by a kill."""
    if not log.exists():
        return
    lines: list[str] = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if not line.endswith("\n") or _images_of(line, log) > images:
            break
        lines.append(line)
    atomic_write(log, "".join(lines))


def _images_of(line: str, log: Path) -> int:
    try:
        return int(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError) as err:
        raise TrainingError(f"{log} has a damaged line ({line.strip()[:80]!r}): remove the file to resume") from err
