"""The errors of a model on held-out tissue, as its bundle keeps them: bounds of the real share for a predicted one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from wsi_stain.config.trust import ErrorBin, ErrorScale, HeldOut
from wsi_stain.errors import BundleError
from wsi_stain.evaluate.contenders import from_bundle
from wsi_stain.evaluate.evaluate import EvaluationResult, Field, evaluate
from wsi_stain.evaluate.figures import BLOCKS_UM, MeasureSettings
from wsi_stain.measure.deconvolution import POSITIVE_OD
from wsi_stain.model.bundle import TRUST, Bundle
from wsi_stain.model.trust import of_training, write_trust
from wsi_stain.pairs.pair import find_pairs, read_pair

EDGES = (0.01, 0.05, 0.2, 0.5, 1.0)
"""Largest predicted share of each bin: errors grow with the share."""
LEAST_BLOCKS = 20
"""A bin with fewer blocks is joined with the one after it, or before it."""
LEVEL = 0.9
DIGITS = 4


def calibrate(
    name: str | Path,
    pairs: Path,
    *,
    split: str = "test",
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write `trust.yaml` into a bundle.

    Args:
        name: name or folder of the bundle.
        pairs: the pairs that it was trained on, with the split `train`.
        split: the split of the held-out errors.
        device: where the held-out fields are stained.
        progress: called with the number of held-out fields done and their total.

    Raises:
        BundleError: the bundle has no folder or no pixel size.
        TrainingError: the pairs cannot be read, or lack a split.
    """
    bundle = Bundle.open(name)
    if bundle.folder is None or bundle.mpp is None:
        raise BundleError(f"{bundle.name} has no training set: only a trained bundle can be calibrated")
    trust = of_training((read_pair(pair)[0] for pair in find_pairs(pairs, "train")), bundle.mpp)
    selection = find_pairs(pairs, split)
    fields = [Field(pair.he.stem, pair.slide_id, partial(read_pair, pair)) for pair in selection]
    result = evaluate(
        [from_bundle(bundle, device)],
        fields,
        ruler=MeasureSettings(bundle.mpp, bundle.background_colour),
        progress=progress,
    )
    patients = [pair.patient_id for pair in selection if pair.patient_id]
    errors = held_out(result, bundle.name, split=split, slides=[pair.slide_id for pair in selection], patients=patients)
    write_trust(bundle.folder, replace(trust, held_out=errors))
    return bundle.folder / TRUST


def held_out(
    result: EvaluationResult, row: str, *, split: str, slides: Sequence[str], patients: Sequence[str]
) -> HeldOut | None:
    """The held-out errors of one row of an evaluation; None if it has too few blocks.

    Args:
        result: of the evaluation.
        row: name of the model.
        split: name of the split.
        slides: the slide of every field; one is assumed where it is not known.
        patients: the patient of every field, likewise; empty if the table does not state them.
    """
    scales = [ErrorScale(um, bins) for um in BLOCKS_UM if (bins := error_bins(*result.shares(row, f"{um} µm")))]
    n_slides = len(set(slides)) or 1
    known = len(set(patients)) if patients else 1 if n_slides == 1 else None
    if not scales:
        return None
    return HeldOut(split, len(result.fields), n_slides, known, POSITIVE_OD, LEVEL, tuple(scales))


def error_bins(predicted: np.ndarray, real: np.ndarray) -> tuple[ErrorBin, ...]:
    """Quantiles of real minus predicted share by predicted share; empty with fewer than `LEAST_BLOCKS` blocks.

    Args:
        predicted: share of every block, float64 (n,), 0–1.
        real: likewise.
    """
    if len(real) < LEAST_BLOCKS:
        return ()
    groups: list[tuple[float, np.ndarray]] = []
    waiting = np.empty(0)
    for low, high in zip((-1.0, *EDGES), EDGES, strict=False):
        waiting = np.concatenate([waiting, (real - predicted)[(predicted > low) & (predicted <= high)]])
        if len(waiting) >= LEAST_BLOCKS:
            groups.append((high, waiting))
            waiting = np.empty(0)
    if len(waiting):
        groups[-1] = (EDGES[-1], np.concatenate([groups[-1][1], waiting]))
    groups[-1] = (EDGES[-1], groups[-1][1])
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    return tuple(
        ErrorBin(most, len(errors), *(round(float(q), DIGITS) for q in np.quantile(errors, tails)))
        for most, errors in groups
    )
