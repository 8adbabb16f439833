"""Evaluate contenders on paired fields: models, other tools' images, and trivial baselines.

Pixel metrics serve for comparison with the literature; on serial sections they barely discriminate. The main criterion
is the DAB-positive area in blocks of tissue, which is robust to the misalignment of two sections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_stain.evaluate.columns import SCALES, summary
from wsi_stain.evaluate.contenders import Contender
from wsi_stain.evaluate.figures import FIELD, FieldPixels, Figures, MeasureSettings, Target
from wsi_stain.measure.metrics import BlandAltman, IntervalEstimate, agreement

LEAST_PATIENTS = 3
"""Patients from which on each of them is left out once."""
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
class EvaluationResult:
    """All measurements."""

    contenders: Sequence[Contender]
    fields: Sequence[Field]
    figures: Mapping[str, Sequence[Figures]]
    """Row name → figures of each field."""
    rows: Mapping[str, Mapping[str, IntervalEstimate]]
    """Row name → metric name → estimate with a 95 % interval."""

    def shares(self, row: str, scale: str) -> tuple[np.ndarray, np.ndarray]:
        """Positive shares of all blocks of one scale: generated and real, float64 (n,)."""
        figures = self.figures[row]
        generated, real = ([getattr(f, side).shares[scale] for f in figures] for side in ("generated", "real"))
        return np.concatenate(generated), np.concatenate(real)

    def parts(self) -> dict[str, Mapping[str, Mapping[str, IntervalEstimate]]]:
        """The rows of parts of the fields: each stratum, and all but one patient, where there are at least three.

        Leaving out a patient shows how much one of them decides the figure; the model itself is not trained again.
        """
        strata = sorted({f.stratum for f in self.fields} - {""})
        patients = sorted({f.patient for f in self.fields} - {""})
        parts = {f"stratum {name}": [f.stratum == name for f in self.fields] for name in strata}
        if len(patients) >= LEAST_PATIENTS:
            parts |= {f"without patient {name}": [f.patient != name for f in self.fields] for name in patients}
        return {name: self._rows_of(chosen) for name, chosen in parts.items()}

    def _rows_of(self, chosen: Sequence[bool]) -> Mapping[str, Mapping[str, IntervalEstimate]]:
        groups = [f.group for f, is_in in zip(self.fields, chosen, strict=True) if is_in]
        return {
            row: summary([f for f, is_in in zip(figures, chosen, strict=True) if is_in], groups)
            for row, figures in self.figures.items()
        }

    def agreement(self, row: str, scale: str) -> BlandAltman:
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


def _distances(generated: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> dict[str, IntervalEstimate]:
    from wsi_stain.evaluate.fid import distances

    values = distances(np.stack(generated), np.stack(real)) if generated else (float("nan"), float("nan"))
    return dict(zip(("FID", "KID"), map(IntervalEstimate, values), strict=True))


def error(figures: Figures) -> float:
    """Mean absolute error of one field's positive share over its blocks of 128 µm (or the field, if smaller)."""
    scale = SCALES[0] if figures.real.shares[SCALES[0]].size else FIELD
    return float(np.abs(figures.generated.shares[scale] - figures.real.shares[scale]).mean())
