"""Evaluate a bundle on paired tiles, beside the trivial baselines that any model must beat.

Pixel metrics are given for comparison with the literature; on serial sections they barely discriminate. The judge is
the DAB-positive area in blocks of tissue, which survives the misalignment of two sections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from wsi_stain.bundle import Bundle
from wsi_stain.eval.metrics import (
    Estimate,
    block_means,
    bootstrap,
    mean_absolute_error,
    pearson,
    psnr,
    ssim,
)
from wsi_stain.eval.stain import POSITIVE_OD, dab

BLOCKS_UM = (64, 128)
"""Sides of the blocks in which positive area is compared, µm."""
BLUR_PX = 16.0
SHIFT_PX = 25

Images = tuple[np.ndarray, np.ndarray]
"""H&E and real stain of one field, both uint8 (h, w, 3)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One generated field against the real one."""

    psnr: float
    ssim: float
    positive: Mapping[str, Images]
    """Positive-area fraction by scale (`64 µm`, `128 µm`, `field`): generated and real, flat arrays."""


def evaluate(
    bundle: Bundle,
    fields: Sequence[Images],
    groups: Sequence[str],
    *,
    mean_colour: np.ndarray,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Estimate]]:
    """Compare bundle and baselines with the real stain.

    Args:
        bundle: the model; its `mpp` must be that of the fields.
        fields: H&E and real stain of each field.
        groups: the slide (or spatial block) of each field: the unit of the bootstrap.
        mean_colour: float (3,), the training set's mean stain colour: what the laziest model would say.
        device: where the model runs.
        progress: called with fields done and in all.

    Returns:
        Row name → metric name → estimate with a 95 % interval.
    """
    generator = bundle.generator(device)
    rows: dict[str, list[Comparison]] = {}
    for i, (he, real) in enumerate(fields):
        generated = generator(he[None])[0]
        for name, image in [(bundle.name, generated), *_baselines(he, real, mean_colour)]:
            rows.setdefault(name, []).append(_compare(image, real, bundle))
        progress(i + 1, len(fields))
    return {name: _summary(comparisons, groups) for name, comparisons in rows.items()}


def _baselines(he: np.ndarray, real: np.ndarray, mean_colour: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What needs no model: the first two see no real stain; the others show what misalignment alone costs."""
    yield "mean stain colour", np.broadcast_to(np.rint(mean_colour).astype(np.uint8), real.shape)
    yield "the H&E itself", he
    yield f"real stain blurred, σ = {BLUR_PX:.0f} px", gaussian_filter(real, (BLUR_PX, BLUR_PX, 0))
    yield f"real stain shifted by {SHIFT_PX} px", np.pad(real, ((SHIFT_PX, 0), (0, 0), (0, 0)), "reflect")[:-SHIFT_PX]


def _compare(image: np.ndarray, real: np.ndarray, bundle: Bundle) -> Comparison:
    positive = [(dab(x, bundle.glass) > POSITIVE_OD).astype(np.float32) for x in (image, real)]
    scales: dict[str, Images] = {
        "field": (positive[0].mean(keepdims=True).ravel(), positive[1].mean(keepdims=True).ravel())
    }
    for um in BLOCKS_UM:
        side = round(um / (bundle.mpp or 1.0))
        generated, truth = (block_means(x, side).ravel() for x in positive)
        scales[f"{um} µm"] = (generated, truth)
    return Comparison(psnr(image, real), ssim(image, real), scales)


def _summary(comparisons: Sequence[Comparison], groups: Sequence[str]) -> dict[str, Estimate]:
    def over(statistic: Callable[[list[Comparison]], float]) -> Estimate:
        return bootstrap(lambda chosen: statistic([comparisons[i] for i in chosen]), groups)

    summary = {
        "PSNR, dB": over(lambda some: float(np.mean([c.psnr for c in some]))),
        "SSIM": over(lambda some: float(np.mean([c.ssim for c in some]))),
    }
    for scale in comparisons[0].positive:
        for name, statistic in (("r", pearson), ("error", mean_absolute_error)):
            summary[f"DAB+ {name}, {scale}"] = over(
                lambda some, scale=scale, statistic=statistic: statistic(
                    *(np.concatenate([c.positive[scale][side] for c in some]) for side in (0, 1))
                )
            )
    return summary


def table(rows: Mapping[str, Mapping[str, Estimate]]) -> str:
    """The result as a Markdown table: value [low, high]; a dash where a figure is undefined."""
    metrics = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(_cell(row[m]) for m in metrics) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def _cell(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "–"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
