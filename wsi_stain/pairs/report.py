"""Output of `wsi-stain pairs check`: a text, a JSON summary, a table of the pairs, and a plot."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain.errors import OutputError
from wsi_stain.files.atomic import new_folder
from wsi_stain.measure.registration import REACH
from wsi_stain.pairs.check import CHANCE, LEAST_PAIRS, LEAST_SHARE, Check, PairFigures, agreeing, separation

PICTURE, SUMMARY, TABLE = "misalignment.png", "pairs_check.json", "pairs_check.csv"
MOST_NAMES = 10
HEADER = ("split", "pairs", "slides", "size, px", "judged", "agree", "misalignment, px: median", "90th percentile")
Part = Mapping[str, Any]


def summary(check: Check) -> dict[str, Any]:
    """All figures of a set, ready for JSON: unknown figures are None.

    Misalignments are those of the pairs that agree, px of the tile; `drift_px` is the median of their
    displacements as (dy, dx), of at least five pairs: what a better registration could remove.
    """
    figures = check.figures
    splits = sorted({f.pair.split for f in figures})
    return {
        "pairs": len(figures),
        "all": _part(figures),
        "splits": {split: _part([f for f in figures if f.pair.split == split]) for split in splits},
        "separation_auc": _known(separation(check)),
        "agreement": {"chance": CHANCE, "least_share": LEAST_SHARE, "shuffled_pairs": len(check.shuffled)},
        "drift_px": _drift(figures),
        "disagreeing": [f.pair.he.name for f in _disagreeing(figures)],
        "flagged": list(check.flagged),
    }


def text(check: Check) -> str:
    """The report as text; the flagged sentences are its last lines."""
    facts = summary(check)
    rows = [HEADER, *(_row(name or "–", part) for name, part in facts["splits"].items())]
    if len(facts["splits"]) != 1:
        rows.append(_row("all", facts["all"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *_remarks(check, facts), *(f"flagged: {x}" for x in facts["flagged"] or ["nothing"])])


def save(check: Check, folder: Path) -> None:
    """Write picture, summary and table into a new folder, which appears when it is complete.

    Raises:
        OutputError: the folder exists.
    """
    refuse(folder)
    with new_folder(folder) as part:
        (part / SUMMARY).write_text(as_json(check) + "\n", encoding="utf-8")
        with (part / TABLE).open("w", encoding="utf-8", newline="") as file:
            table = [_line(f) for f in check.figures]
            writer = csv.DictWriter(file, list(table[0]) if table else [])
            writer.writeheader()
            writer.writerows(table)
        _draw(check, part / PICTURE)


def refuse(folder: Path) -> None:
    """Raise OutputError if the folder exists: call it before the check, not after it."""
    if folder.exists():
        raise OutputError(f"{folder} already exists: choose another name, or remove it first")


def as_json(check: Check) -> str:
    """The summary as JSON."""
    return json.dumps(summary(check), indent=1, ensure_ascii=False)


def _part(figures: Sequence[PairFigures]) -> dict[str, Any]:
    shifts = [f.misalignment_px for f in figures if not math.isnan(f.misalignment_px)]
    sizes = Counter(f"{f.width}×{f.height}" for f in figures if not f.problem)
    return {
        "pairs": len(figures),
        "slides": len({f.pair.slide_id for f in figures} - {""}),
        "slide_unknown": sum(not f.pair.slide_id for f in figures),
        "sizes": dict(sizes.most_common()),
        "judged": sum(f.is_judged for f in figures),
        "agree": sum(f.agrees for f in figures),
        "disagree": sum(f.disagrees for f in figures),
        "share_agreeing": _known(agreeing(figures)),
        "misalignment_px": {"median": _quantile(shifts, 0.5), "nine_in_ten": _quantile(shifts, 0.9)},
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


def _quantile(values: Sequence[float], share: float) -> float | None:
    return round(float(np.quantile(values, share)), 2) if values else None


def _drift(figures: Sequence[PairFigures]) -> list[float] | None:
    shifts = [(f.match.dy, f.match.dx) for f in figures if not math.isnan(f.misalignment_px)]
    return [round(float(v), 2) for v in np.median(shifts, axis=0)] if len(shifts) >= LEAST_PAIRS else None


def _disagreeing(figures: Sequence[PairFigures]) -> list[PairFigures]:
    return sorted((f for f in figures if f.disagrees), key=lambda f: f.match.agreement)


def _row(name: str, part: Part) -> tuple[str, ...]:
    sizes = list(part["sizes"])
    size = ", ".join(sizes[:2]) + (f" and {len(sizes) - 2} more" if len(sizes) > 2 else "")
    slides = str(part["slides"]) if not part["slide_unknown"] else "unknown"
    share = "–" if part["share_agreeing"] is None else f"{part['share_agreeing']:.0%}"
    shifts = ["–" if v is None else f"{v:.1f}" for v in part["misalignment_px"].values()]
    return (name, str(part["pairs"]), slides, size or "–", str(part["judged"]), share, *shifts)


def _remarks(check: Check, facts: Mapping[str, Any]) -> list[str]:
    total, names = facts["all"], facts["disagreeing"]
    lines = [_stains(total, len(check.shuffled), facts["separation_auc"])]
    if names:
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        lines.append(f"inspect: {', '.join(names[:MOST_NAMES])}{more}: most shuffled pairs agree better")
    if facts["drift_px"]:
        down, right = facts["drift_px"]
        lines.append(f"drift: the stain's median displacement is {down:+.1f} px down and {right:+.1f} px to the right")
    if total["slide_unknown"] and len(facts["splits"]) > 1:
        lines.append(
            f"slides: the slide of {total['slide_unknown']} pairs is unknown, so only adjacent tiles can reveal a "
            "slide in two splits; provide a CSV with the column slide_id"
        )
    return lines


def _stains(total: Part, shuffled: int, auc: float | None) -> str:
    if total["judged"] < LEAST_PAIRS:
        return f"stains: {total['judged']} pairs with enough structure are too few to judge; {LEAST_PAIRS} are needed"
    return (
        f"stains: {total['agree']} of {total['judged']} pairs agree in structure better than {1 - CHANCE:.0%} of "
        f"{shuffled} shuffled pairs; required {LEAST_SHARE:.0%}, by chance {CHANCE:.0%}; true against shuffled: "
        f"AUC {auc:.2f}"
    )


def _line(f: PairFigures) -> dict[str, Any]:
    verdict = "unreadable" if f.problem else "not judged" if not f.is_judged else "unclear"
    return {
        "he": f.pair.he,
        "ihc": f.pair.ihc,
        "slide_id": f.pair.slide_id,
        "split": f.pair.split,
        "width": f.width,
        "height": f.height,
        "verdict": "agrees" if f.agrees else "disagrees" if f.disagrees else verdict,
        "agreement": _known(f.match.agreement),
        "chance": _known(f.chance),
        "dy_px": _known(f.match.dy),
        "dx_px": _known(f.match.dx),
        "misalignment_px": _known(f.misalignment_px),
        "sharpness": _known(f.match.sharpness),
    }


def _draw(check: Check, file: Path) -> None:
    """Misalignment of the pairs that agree, and agreement of true and shuffled pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    shifts, agreement = figure.subplots(1, 2)
    values = [f.misalignment_px for f in check.figures if not math.isnan(f.misalignment_px)]
    longest = max((max(f.height, f.width) for f in check.figures), default=0) * REACH * math.sqrt(2)
    shifts.hist(values, bins=np.linspace(0, max(longest, 1), 33), color="tab:blue")
    shifts.set(xlabel="misalignment, px", ylabel="pairs", title=f"pairs that agree: {len(values)}")
    true = [f.match.agreement for f in check.figures if f.is_judged]
    bins = np.linspace(min([0.0, *check.shuffled, *true]), 1, 41)
    for sample, name, colour in ((true, "pairs", "tab:blue"), (check.shuffled, "shuffled pairs", "tab:gray")):
        weights = np.full(len(sample), 1 / max(len(sample), 1))
        agreement.hist(sample, bins=bins, weights=weights, alpha=0.6, label=name, color=colour)
    if len(check.shuffled):
        least = float(np.quantile(check.shuffled, 1 - CHANCE))
        agreement.axvline(least, color="black", linestyle=":", label=f"{1 - CHANCE:.0%} of the shuffled")
    agreement.set(xlabel="agreement of structure, r", ylabel="share", title="true and shuffled pairs")
    agreement.legend(frameon=False)
    figure.savefig(file)
