"""The interval of a predicted positive share, from the errors of the model on held-out tissue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi_stain.config.trust import ErrorScale, HeldOut
from wsi_stain.errors import counted
from wsi_stain.readout.survey import ReadoutSurvey


@dataclass(frozen=True, slots=True)
class Interval:
    """The bounds of predicted shares, or why there are none."""

    held_out: HeldOut | None
    text: str
    """For people: where the bounds come from, or why there are none."""

    def bounds(self, share: np.ndarray, um: int) -> np.ndarray | None:
        """Predicted shares (n,) of blocks of a side → bounds, float64 (n, 2) in 0–1; None without held-out errors."""
        if self.held_out is None:
            return None
        scale = min(self.held_out.scales, key=lambda scale: abs(scale.um - um))
        return bounds_of(share, scale)


def interval_of(survey: ReadoutSurvey) -> Interval:
    """The interval that the model of a virtual stain allows; a physical stain is a measurement and has none."""
    if not survey.origin and survey.bundle is None:
        return Interval(None, "No interval: this is not a virtual stain of wsi-stain.")
    name = f"{survey.origin.get('model', '')} {survey.origin.get('model_version', '')}".strip()
    if survey.bundle is None:
        return Interval(None, f"No interval: the model {name} is not installed here; pass it with --model.")
    trust = survey.bundle.trust
    if trust is None or trust.held_out is None:
        return Interval(None, f"No interval: the model {name or survey.bundle.name} has none (no held-out figures).")
    held_out = trust.held_out
    request = survey.request
    is_own = request.stains in ("auto", "model") and request.background is None
    if held_out.threshold != request.thresholds.weak or not is_own:
        return Interval(
            None,
            f"No interval: the held-out errors of {name} hold for a DAB threshold of {held_out.threshold:g} and "
            "the vectors and the background of the model (--stains model, no --background).",
        )
    return Interval(held_out, text_of(survey.bundle.name, held_out))


def text_of(model: str, held_out: HeldOut) -> str:
    """What the interval means, in words."""
    fields, slides = counted(held_out.fields, "field"), counted(held_out.slides, "slide")
    patients = "an unknown number of patients" if held_out.patients is None else counted(held_out.patients, "patient")
    return (
        f"Interval: {held_out.level:.0%} of the held-out blocks of {model} with a similar predicted share had their "
        f"real share within these bounds ({fields} of {slides} of {patients}, split {held_out.split}). It holds "
        "for tissue like that. The bounds of a slide are the means of those of its blocks, as if all erred alike."
    )


def bounds_of(share: np.ndarray, scale: ErrorScale) -> np.ndarray:
    """Predicted shares (n,) → bounds, float64 (n, 2), within 0–1."""
    which = np.searchsorted([b.most for b in scale.bins], share).clip(0, len(scale.bins) - 1)
    errors = np.array([(b.low, b.high) for b in scale.bins])[which]
    return np.clip(share[:, None] + errors, 0, 1)
