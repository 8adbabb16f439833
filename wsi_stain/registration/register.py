"""Registers two slides: hypotheses, the one that holds inside, fragments, the non-rigid part, the verdict.

pictures → hypotheses → affine → evidence → fragments → field → verdict
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wsi_stain.registration.affine import Affine
from wsi_stain.registration.coarse import Hypothesis, hypotheses
from wsi_stain.registration.evidence import Evidence, evidence
from wsi_stain.registration.field import Deformation, nonrigid
from wsi_stain.registration.fragments import Fragments, fragments, merged
from wsi_stain.registration.images import Picture
from wsi_stain.registration.refine import refined
from wsi_stain.registration.transform import Piece
from wsi_stain.registration.verdict import PART_SURE, SURE, Verdict, judge

SCALES_UM = (32.0, 16.0)
"""Scales of the affine refinement."""
TURN_DEGREES, TURN_STEP = 28, 4
"""How far a fragment may have turned by itself."""
APART_UM = 200.0
"""A part has moved by itself if its own map differs by more than this from the slide's: the field follows less."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A hypothesis after refinement, with what holds inside."""

    hypothesis: Hypothesis
    affine: Affine
    evidence: Evidence


@dataclass(frozen=True, eq=False)
class Registration:
    """The result for two slides."""

    candidates: tuple[Candidate, ...]
    """All that was tried on the whole slide, the best first."""
    fragments: Fragments
    pieces: tuple[Piece, ...]
    """One for each fragment; with the verdict `refuse` they mean nothing."""
    parts: Fragments
    """The parts of the tissue that were judged by themselves; several may share one piece."""
    evidences: tuple[Evidence, ...]
    """One for each part, of its affine map."""
    verdict: Verdict


def register(
    he: Picture,
    ihc: Picture,
    *,
    one_affine: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Registration:
    """Register two slides.

    Args:
        he: the H&E, in whose frame the transform starts.
        ihc: the other stain.
        one_affine: one affine map for all fragments, instead of one for each.
        on_stage: called with the name of each stage as it begins.
    """
    on_stage("coarse")
    candidates = _candidates(he, ihc)
    on_stage("fragments")
    parts = fragments(he)
    pictures = [he.only(parts.mask(i, he)) for i in range(parts.count)]
    fits = [_of_part(picture, ihc, candidates[0], is_fixed=one_affine) for picture in pictures]
    verdict = judge(candidates[0].evidence, [picture.tissue_um2 for picture in pictures], [found for _, found in fits])
    on_stage("non-rigid")
    chosen = _adopted(pictures, fits)
    affines = list(dict.fromkeys(chosen))
    groups = [affines.index(affine) for affine in chosen]
    labels = merged(parts, groups)
    pieces = tuple(
        Piece(
            affine,
            Deformation.still() if verdict.word == "refuse" else nonrigid(he.only(labels.mask(i, he)), ihc, affine),
        )
        for i, affine in enumerate(affines)
    )
    return Registration(tuple(candidates), labels, pieces, parts, tuple(found for _, found in fits), verdict)


def _adopted(pictures: list[Picture], fits: list[tuple[Affine, Evidence]]) -> list[Affine]:
    """The map of each part; one that could not be judged takes that of the nearest part that holds."""
    sure = [i for i, (_, found) in enumerate(fits) if found.deviations >= PART_SURE]
    if not sure:
        return [affine for affine, _ in fits]
    centres = np.array([picture.centre for picture in pictures])
    nearest = [sure[int(np.linalg.norm(centres[sure] - centre, axis=1).argmin())] for centre in centres]
    return [fits[i if i in sure else nearest[i]][0] for i in range(len(fits))]


def _candidates(he: Picture, ihc: Picture) -> list[Candidate]:
    found = []
    for hypothesis in hypotheses(he, ihc):
        affine = refined(he, ihc, hypothesis.affine, SCALES_UM)
        found.append(Candidate(hypothesis, affine, evidence(he, ihc, affine)))
    return sorted(found, key=lambda candidate: -candidate.evidence.deviations)


def _of_part(part: Picture, ihc: Picture, best: Candidate, *, is_fixed: bool) -> tuple[Affine, Evidence]:
    """The map of one part, and what holds inside: that of the whole slide, unless the part has moved by itself."""
    found = evidence(part, ihc, best.affine)
    if is_fixed or best.evidence.deviations < SURE:
        return best.affine, found
    turns = [best.affine.angle + turn for turn in range(-TURN_DEGREES, TURN_DEGREES + 1, TURN_STEP)]
    own = hypotheses(part, ihc, degrees=turns, mirrored=(best.affine.is_mirrored,))
    starts = [(best.affine, SCALES_UM[1:]), *((hypothesis.affine, SCALES_UM) for hypothesis in own)]
    fits = [refined(part, ihc, start, scales) for start, scales in starts]
    affine, other = max(((fit, evidence(part, ihc, fit)) for fit in fits), key=lambda pair: pair[1].deviations)
    points = (np.argwhere(part.at(64).tissue) + 0.5) * part.at(64).um + part.origin
    apart = float(np.median(np.linalg.norm(affine(points) - best.affine(points), axis=1)))
    if apart <= APART_UM:  # the field closes the difference, so what holds under the one holds under the other
        return best.affine, max(found, other, key=lambda held: held.deviations)
    return (affine, other) if other.deviations >= max(SURE, 0.8 * found.deviations) else (best.affine, found)
