"""Evaluate contenders on paired fields: models, other tools' images, and trivial baselines.

Pixel metrics serve for comparison with the literature; on serial sections they barely discriminate. The main criterion
is the DAB-positive area in blocks of tissue, which is robust to the misalignment of two sections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_stain.evaluate.contenders import Contender
from wsi_stain.evaluate.figures import (
    BINS,
    BLOCKS_UM,
    CLEAR_UM,
    FIELD,
    MOST_OD,
    FieldPixels,
    Figures,
    MeasureSettings,
    Target,
)
from wsi_stain.measure.deconvolution import POSITIVE_OD
from wsi_stain.measure.metrics import (
    Agreement,
    Estimate,
    agreement,
    bootstrap,
    dice,
    divergence,
    jaccard,
    mean,
    mean_absolute_error,
    pair_sums,
    pearson,
    relative_entropy,
    true_negative_rate,
    true_positive_rate,
)
from wsi_stain.measure.streaks import streaks

SCALES = (*(f"{um} µm" for um in BLOCKS_UM), FIELD)
LEAST_PATIENTS = 3
"""Patients from which on each of them is left out once."""
MIXED = (0.1, 0.9)
"""Real positive share of a mixed block, from and to."""
Features = Callable[[np.ndarray], np.ndarray]
"""uint8 (h, w, 3) → float32 (d,), as in `evaluate.fid`."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the evaluation; its pixels are read on demand and not kept."""

    name: str
    group: str
    """Patient, slide or spatial block: the unit of the bootstrap."""
    read: Callable[[], tuple[np.ndarray, ...]]
    """H&E and real stain, both uint8 (h, w, 3); and, if not all pixels count, which ones do, bool (h, w)."""
    stratum: str = ""
    """A group of fields that is also reported by itself; "" = none."""
    patient: str = ""
    """"" = unknown."""

    def view(self) -> FieldPixels:
        """The field with its pixels."""
        return FieldPixels(self.name, *self.read())


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of the table."""

    name: str
    meaning: str
    """One sentence for the report."""
    sums: Callable[[Figures], np.ndarray]
    """Contribution of one field, (k,)."""
    finish: Callable[[np.ndarray], np.ndarray]
    """Sums over fields (…, k) → the figure (…)."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """All measurements."""

    contenders: Sequence[Contender]
    fields: Sequence[Field]
    figures: Mapping[str, Sequence[Figures]]
    """Row name → figures of each field."""
    rows: Mapping[str, Mapping[str, Estimate]]
    """Row name → metric name → estimate with a 95 % interval."""

    def shares(self, row: str, scale: str) -> tuple[np.ndarray, np.ndarray]:
        """Positive shares of all blocks of one scale: generated and real, float64 (n,)."""
        figures = self.figures[row]
        generated, real = ([getattr(f, side).shares[scale] for f in figures] for side in ("generated", "real"))
        return np.concatenate(generated), np.concatenate(real)

    def parts(self) -> dict[str, Mapping[str, Mapping[str, Estimate]]]:
        """The rows of parts of the fields: each stratum, and all but one patient, where there are at least three.

        Leaving out a patient shows how much one of them decides the figure; the model itself is not trained again.
        """
        strata = sorted({f.stratum for f in self.fields} - {""})
        patients = sorted({f.patient for f in self.fields} - {""})
        parts = {f"stratum {name}": [f.stratum == name for f in self.fields] for name in strata}
        if len(patients) >= LEAST_PATIENTS:
            parts |= {f"without patient {name}": [f.patient != name for f in self.fields] for name in patients}
        return {name: self._rows_of(chosen) for name, chosen in parts.items()}

    def _rows_of(self, chosen: Sequence[bool]) -> Mapping[str, Mapping[str, Estimate]]:
        groups = [f.group for f, is_in in zip(self.fields, chosen, strict=True) if is_in]
        return {
            row: summary([f for f, is_in in zip(figures, chosen, strict=True) if is_in], groups)
            for row, figures in self.figures.items()
        }

    def agreement(self, row: str, scale: str) -> Agreement:
        """Bland–Altman of the positive share in blocks of one scale."""
        return agreement(*self.shares(row, scale))


def evaluate(
    contenders: Sequence[Contender],
    fields: Sequence[Field],
    *,
    ruler: MeasureSettings,
    features: Features | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvaluationResult:
    """Compare every contender with the real stain; whole fields, no random crops, one field in memory at a time.

    Args:
        contenders: the rows, with different names.
        fields: the fields to evaluate on.
        ruler: µm/px of the fields and background colour of the stain.
        features: Inception features for FID and KID; None omits both.
        progress: called with the number of fields done and the total.
    """
    assert len({c.name for c in contenders}) == len(contenders), "two rows have the same name"
    figures: dict[str, list[Figures]] = {c.name: [] for c in contenders}
    embeddings: dict[str, list[np.ndarray]] = {c.name: [] for c in contenders}
    real: list[np.ndarray] = []
    for i, field in enumerate(fields):
        view = field.view()
        target = Target(view, ruler)
        if features is not None:
            real.append(features(view.real))
        for contender in contenders:
            answer = contender.answer(view)
            figures[contender.name].append(target.compare(answer))
            if features is not None and answer.ndim == 3:
                embeddings[contender.name].append(features(answer))
        progress(i + 1, len(fields))
    groups = [field.group for field in fields]
    rows = {name: summary(of_row, groups) for name, of_row in figures.items()}
    if features is not None:
        rows = {name: {**row, **_distances(embeddings[name], real)} for name, row in rows.items()}
    return EvaluationResult(contenders, fields, figures, rows)


def _distances(generated: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> dict[str, Estimate]:
    from wsi_stain.evaluate.fid import distances

    values = distances(np.stack(generated), np.stack(real)) if generated else (float("nan"), float("nan"))
    return dict(zip(("FID", "KID"), map(Estimate, values), strict=True))


def summary(figures: Sequence[Figures], groups: Sequence[str]) -> dict[str, Estimate]:
    """Figures of one row's fields → every metric with its interval."""
    return {m.name: bootstrap(np.stack([m.sums(f) for f in figures]), m.finish, groups) for m in METRICS}


def error(figures: Figures) -> float:
    """Mean absolute error of one field's positive share over its blocks of 128 µm (or the field, if smaller)."""
    scale = SCALES[0] if figures.real.shares[SCALES[0]].size else FIELD
    return float(np.abs(figures.generated.shares[scale] - figures.real.shares[scale]).mean())


def _metrics() -> list[Metric]:
    metrics = []
    for scale in SCALES:
        where = "whole fields" if scale == FIELD else f"blocks of {scale}"

        def sums(f: Figures, scale: str = scale) -> np.ndarray:
            return pair_sums(f.generated.shares[scale], f.real.shares[scale])

        positive = f"share of DAB-positive pixels (DAB density above {POSITIVE_OD} OD) in {where}"
        metrics += [
            Metric(f"DAB+ r, {scale}", f"Pearson's r of the {positive}", sums, pearson),
            Metric(f"DAB+ error, {scale}", f"mean absolute error of the {positive}", sums, mean_absolute_error),
        ]
    return [*metrics, *_mixed(), *_overlaps(), *_amounts(), *_texture(), *_pixels()]


def _mixed() -> list[Metric]:
    """Over all blocks, r is the contrast between two tissues; blocks that hold both brown and other tissue are hard."""
    scale, (low, high) = SCALES[0], MIXED

    def sums(f: Figures) -> np.ndarray:
        real = f.real.shares[scale]
        is_mixed = (real >= low) & (real <= high)
        return pair_sums(f.generated.shares[scale][is_mixed], real[is_mixed])

    where = f"share of DAB-positive pixels in blocks of {scale} that are {low:.0%} to {high:.0%} positive in truth"
    return [
        Metric(f"DAB+ r, mixed {scale}", f"Pearson's r of the {where}", sums, pearson),
        Metric(f"DAB+ error, mixed {scale}", f"mean absolute error of the {where}", sums, mean_absolute_error),
    ]


def _overlaps() -> list[Metric]:
    """Pixel by pixel, so that on serial sections the row of the shifted real stain is the best that can be reached."""
    kinds = {
        "Dice": ("Dice's coefficient", dice),
        "IoU": ("intersection over union", jaccard),
        "TPR": ("true positive rate (sensitivity)", true_positive_rate),
        "TNR": ("true negative rate (specificity)", true_negative_rate),
    }
    where = f"of the DAB-positive pixels (density above {POSITIVE_OD} OD), over all pixels of all fields"
    return [Metric(f"DAB+ {name}", f"{what} {where}", lambda f: f.overlap, by) for name, (what, by) in kinds.items()]


def _texture() -> list[Metric]:
    return [
        Metric(
            "streaks",
            "highest over median power of a ring of the texture's spectrum, mean over rings: 1 without direction, more "
            "with streaks, hatching or checkerboards; compare it with the row of the shifted real stain",
            lambda f: f.spectrum,
            streaks,
        ),
        Metric(
            "outline",
            "difference of the background's mean from the constant background of unstained tiles, in grey levels, "
            f"at least {CLEAR_UM:.0f} µm from tissue",
            lambda f: f.outline,
            mean,
        ),
    ]


def _amounts() -> list[Metric]:
    return [
        Metric(
            "DAB p90 r",
            "Pearson's r over fields of the 90th percentile of DAB density",
            lambda f: pair_sums(np.array(f.generated.p90), np.array(f.real.p90)),
            pearson,
        ),
        Metric(
            "DAB integrated r",
            "Pearson's r over fields of the integrated optical density of DAB (OD·µm²)",
            lambda f: pair_sums(np.array(f.generated.integrated), np.array(f.real.integrated)),
            pearson,
        ),
        Metric(
            "DAB top 10 % r",
            "Pearson's r over fields of the mean DAB density of their densest tenth of pixels",
            lambda f: pair_sums(np.array(f.generated.top_tenth), np.array(f.real.top_tenth)),
            pearson,
        ),
        Metric(
            "DAB histogram KL",
            f"Kullback–Leibler divergence, in nats, of the generated from the real DAB densities of all tissue pixels, "
            f"{BINS} bins from 0 to {MOST_OD} OD with one pixel added to each",
            lambda f: np.concatenate([f.generated.histogram, f.real.histogram]).astype(np.float64),
            relative_entropy,
        ),
        Metric(
            "DAB histogram divergence",
            f"Jensen–Shannon divergence, in bits, of the DAB densities of all tissue pixels, {BINS} bins from 0 to "
            f"{MOST_OD} OD (0 = equal, 1 = disjoint)",
            lambda f: np.concatenate([f.generated.histogram, f.real.histogram]).astype(np.float64),
            divergence,
        ),
    ]


def _pixels() -> list[Metric]:
    return [
        Metric(
            "H r to H&E",
            "Pearson's r of hematoxylin, generated stain against its H&E input, per pixel after smoothing; "
            "mean over fields where both vary",
            lambda f: np.nan_to_num([f.hematoxylin_r, not np.isnan(f.hematoxylin_r)]),
            mean,
        ),
        Metric(
            "PSNR, dB",
            "peak signal-to-noise ratio against the real stain, mean over fields",
            lambda f: np.array([f.psnr, 1.0]),
            mean,
        ),
        Metric(
            "SSIM",
            "structural similarity to the real stain (7 × 7 windows, mean over channels), mean over fields",
            lambda f: np.array([f.ssim, 1.0]),
            mean,
        ),
    ]


METRICS = tuple(_metrics())
"""All metrics except FID and KID, which are not sums over fields."""
