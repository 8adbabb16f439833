"""The verdict on a slide before it is stained: is it H&E, and is it like the slides that the model was trained on?

The limits of H&E were set on the real slides of docs/trust.md, between good H&E and everything else. The limits of a
model are the spread of its own training tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from wsi_stain.config.trust import Figure
from wsi_stain.slide.slide import MAX_GROWTH

Level = Literal["ok", "unlike", "bad"]
"""`unlike`: H&E, but not like the training slides, so the model may be wrong. `bad`: must not be stained."""

MOST_BROWN, MOST_CYAN, MOST_GREY = 0.05, 0.25, 0.1
"""Shares of the stained pixels in which blue, red, or no channel is absorbed most; in H&E green is."""
MOST_BLUE_PINK, LEAST_GREEN = 0.06, 0.62
"""Direction of the pinkest pixels: red minus blue, and green; eosin is at -0.04 and 0.99."""
LEAST_SHARPNESS = 1.6
"""In focus it is 2.0 to 4.5 at 1 µm/px; blurred by a Gaussian of σ = 2 µm, 1.5 or less."""
SLACK = 0.1
"""A figure may be outside the range of the training tiles by this share of the range."""
UNLIKE = {
    "density": ("is paler than", "is more strongly stained than"),
    "bluest": ("has less blue nuclei than", "has bluer nuclei than"),
    "pinkest": ("is pinker than", "is less pink than"),
    "sharpness": ("is less sharp than", "is sharper or noisier than"),
    "nucleus_um": ("has smaller nuclei than", "has larger nuclei than"),
}
"""Figure → what it means if it is below, or above, the range of the training tiles."""


@dataclass(frozen=True, slots=True)
class InputVerdict:
    """What a slide looks like to a model."""

    level: Level
    reasons: tuple[str, ...] = ()
    """Sentences for the user, whose subject is the slide."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """The portrait."""

    def in_words(self) -> dict[str, str]:
        """Texts for the metadata of an output."""
        words = {"input_verdict": self.level}
        return words | ({"input_reasons": "; ".join(self.reasons)} if self.reasons else {})

    def as_dict(self) -> dict[str, object]:
        """For `run.json`."""
        return {"verdict": self.level, "reasons": list(self.reasons), "figures": dict(self.figures)}


def judge(portrait: Mapping[str, float], trained: Sequence[Figure] | None, *, growth: float = 1.0) -> InputVerdict:
    """Judge the portrait of a slide.

    Args:
        portrait: of the slide; empty if it has no stained tissue.
        trained: figures of the training tiles; None if the model does not state them.
        growth: factor by which the slide is enlarged to the µm/px of the model; at most 1 = it is not.
    """
    if not portrait:
        return InputVerdict("unlike", ("shows too little stained tissue to judge whether it is H&E",))
    if faults := tuple(_faults(portrait)):
        return InputVerdict("bad", faults, portrait)
    differences = tuple(_enlarged(growth) + _differences(portrait, trained or ()))
    return InputVerdict("unlike" if differences else "ok", differences, portrait)


def _faults(portrait: Mapping[str, float]) -> list[str]:
    """Why a slide is not a usable H&E."""
    faults = []
    if portrait["brown"] > MOST_BROWN:
        faults.append(f"is brown in {portrait['brown']:.0%} of its stain: an immunostain, or another brown stain")
    if portrait["grey"] > MOST_GREY:
        faults.append(f"is grey or black in {portrait['grey']:.0%} of its stain: a silver stain, or ink")
    if portrait["cyan"] > MOST_CYAN:
        share = f"{portrait['cyan']:.0%} of its stain"
        faults.append(f"is blue or green in {share}: hematoxylin without eosin, an immunostain, or another stain")
    if portrait["pinkest"] > MOST_BLUE_PINK or portrait["green_of_pinkest"] < LEAST_GREEN:
        faults.append("has no pink of eosin: another stain than H&E")
    if portrait["sharpness"] < LEAST_SHARPNESS:
        faults.append(f"is out of focus, or much coarser than stated (sharpness {portrait['sharpness']:.2f})")
    return faults


def _enlarged(growth: float) -> list[str]:
    if growth <= float(MAX_GROWTH):
        return []
    return [f"is enlarged {growth:.2g}-fold, so it lacks the detail of the training slides"]


def _differences(portrait: Mapping[str, float], trained: Sequence[Figure]) -> list[str]:
    """In what a slide differs from the training tiles."""
    differences = []
    for figure in trained:
        if figure.name not in UNLIKE:
            continue
        value, slack = portrait[figure.name], SLACK * (figure.high - figure.low)
        if not figure.low - slack <= value <= figure.high + slack:
            word = UNLIKE[figure.name][value > figure.high]
            hint = "; check the µm per px" if figure.name == "nucleus_um" else ""
            usual = f"there {figure.low:.3g} to {figure.high:.3g}"
            differences.append(f"{word} the training slides ({figure.name} {value:.3g}, {usual}{hint})")
    return differences
