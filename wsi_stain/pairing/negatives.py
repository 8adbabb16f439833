"""Training pairs from tissue that is known to be negative: its stain is drawn from the H&E itself, without any DAB.

A model that was trained on one slide paints other tissue brown. Where a real stain has shown a tissue to be negative,
its H&E alone teaches that, whether or not the two slides can be registered.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import torch

from wsi_stain.errors import SlideError, TrainingError
from wsi_stain.files.atomic import atomic_write
from wsi_stain.geometry import Box
from wsi_stain.measure.deconvolution import HE_BACKGROUND, Background, optical_density, tissue
from wsi_stain.measure.palette import estimate
from wsi_stain.nn.pixels import to_pixels, to_tensor
from wsi_stain.nn.stain_head import CHANNELS, StainHead
from wsi_stain.pairs.pair import check_scale, evenly_spread, find_pairs, read_pair
from wsi_stain.slide.slide import Slide, View

LEAST_TISSUE, LEAST_OD = 0.5, 0.12
"""Least share of tissue of a tile, and its least mean optical density: fat and torn edges teach nothing."""
NO_DAB = -30.0
"""What the network would predict for a DAB density of 0: softplus(-30) is 1e-13."""
TABLE = "pairs.csv"
MOST_PAIRS = 60
"""Pairs of which the palette is measured, as in training."""
Progress = Callable[[int, int], None]


def head_of(
    pairs: Path, *, mpp: float = 1.0, background: Background = (247, 247, 247), counterstain: float = 2.0
) -> StainHead:
    """A stain head with the colours of the training split of `pairs`, as a training would have it.

    Args:
        pairs: folder with a `pairs.csv`.
        mpp: pixel size of its tiles, µm.
        background: background colour of the stain, as in the training's configuration.
        counterstain: likewise.

    Raises:
        TrainingError: the folder has no table of pairs.
    """
    if not (pairs / TABLE).is_file():
        raise TrainingError(f"{pairs} has no {TABLE}: pass the folder of the pairs to which the tiles are added")
    train = evenly_spread(find_pairs(pairs, "train"), MOST_PAIRS)
    head = StainHead()
    head.use(estimate(map(read_pair, train), background, mpp), counterstain)
    return head


def add_negatives(
    slide: Slide,
    pairs: Path,
    head: StainHead,
    region: Box | None = None,
    *,
    mpp: float = 1.0,
    tile: int = 512,
    allow_upsampling: bool = False,
    progress: Progress = lambda done, total: None,
) -> int:
    """Add the tissue tiles of an H&E slide to a folder of pairs, in the split `train`, with a stain without DAB.

    Args:
        slide: an open H&E slide of tissue that is known to be negative.
        pairs: folder with a `pairs.csv`; it gets two PNG files and one row per tile.
        head: draws the stain, see `head_of`.
        region: only these tiles, in level-0 px.
        mpp: pixel size of the tiles, µm.
        tile: side of the tiles, px.
        allow_upsampling: enlarge a slide that is coarser than `mpp`. Unless the positive pairs are enlarged, too, a
            model may then learn that enlarged tissue is negative.
        progress: called with the number of tiles done and the total.

    Returns:
        The number of pairs added.

    Raises:
        TrainingError: the folder holds tiles of this slide already, or tiles of another pixel size.
        SlideError: the slide has no pixel size or is too coarse, or the region has no tile with enough tissue.
    """
    if any(pair.slide_id == slide.path.stem for pair in find_pairs(pairs)):
        raise TrainingError(f"{pairs / TABLE} holds tiles of {slide.path.stem} already: remove its rows first")
    check_scale(find_pairs(pairs), mpp, "--mpp")
    view, rows = slide.at(mpp, allow_upsampling=allow_upsampling), list[dict[str, object]]()
    boxes = _boxes(view, region or Box.of(slide.size), tile)
    for n, box in enumerate(boxes):
        he = view.read(box)
        if _is_tissue(he, mpp):
            rows.append(_write(pairs, slide.path.stem, he, drawn(head, he), box, view))
        progress(n + 1, len(boxes))
    if not rows:
        raise SlideError(f"{slide.path.name}: no tile of {tile} px has enough tissue; choose another region")
    _append(pairs / TABLE, rows)
    return len(rows)


@torch.inference_mode()
def drawn(head: StainHead, he: np.ndarray) -> np.ndarray:
    """The stain of a negative tile: uint8 (h, w, 3) H&E → uint8 (h, w, 3)."""
    raw = torch.zeros(1, CHANNELS, *he.shape[:2])
    raw[:, 0] = NO_DAB
    return to_pixels(head(raw, to_tensor(he[None])))[0]


def _boxes(view: View, region: Box, tile: int) -> list[Box]:
    """The whole tiles of a region given in level-0 px, in px of the view."""
    y0, x0, y1, x1 = (round(v / view.scale) for v in region & Box.of(view.slide.size))
    return [
        Box(y, x, y + tile, x + tile) for y in range(y0, y1 - tile + 1, tile) for x in range(x0, x1 - tile + 1, tile)
    ]


def _is_tissue(he: np.ndarray, mpp: float) -> bool:
    return bool(tissue(he, mpp).mean() >= LEAST_TISSUE and optical_density(he, HE_BACKGROUND).mean() >= LEAST_OD)


def _write(folder: Path, slide: str, he: np.ndarray, ihc: np.ndarray, box: Box, view: View) -> dict[str, object]:
    name = f"{slide}_{box.y0:06d}_{box.x0:06d}.png"
    for kind, image in (("he", he), ("ihc", ihc)):
        (folder / kind).mkdir(exist_ok=True)
        atomic_write(folder / kind / name, bytes(imagecodecs.png_encode(image)))
    x, y, side = (round(v * view.scale) for v in (box.x0, box.y0, box.size.w))
    files: dict[str, object] = {"he": f"he/{name}", "ihc": f"ihc/{name}"}
    return files | {"slide_id": slide, "split": "train", "x": x, "y": y, "side": side, "mpp": view.mpp}


def _append(table: Path, rows: list[dict[str, object]]) -> None:
    """Add rows under the columns that the table has; those that it lacks are left out."""
    text = table.read_text(encoding="utf-8-sig")
    columns = next(csv.reader(io.StringIO(text)))
    more = io.StringIO()
    csv.DictWriter(more, columns, restval="", extrasaction="ignore", lineterminator="\n").writerows(rows)
    atomic_write(table, text + ("" if text.endswith("\n") else "\n") + more.getvalue())
