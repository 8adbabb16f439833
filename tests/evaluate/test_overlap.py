"""Overlap of positive pixels, and the rows of strata and patients, against values computed by hand."""

import dataclasses

import numpy as np
import pytest
from builders.fields import RULER, fields, judge, perfect

from wsi_stain.evaluate.contenders import Contender
from wsi_stain.evaluate.evaluate import evaluate
from wsi_stain.evaluate.figures import overlap
from wsi_stain.evaluate.groups import FieldOrigin, group
from wsi_stain.evaluate.held_out import LEAST_BLOCKS, error_bins
from wsi_stain.measure.metrics import dice, jaccard, true_negative_rate, true_positive_rate


def test_overlap_is_hand_computed() -> None:
    generated = np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]], bool)
    real = np.array([[1, 1, 0, 1, 0, 0, 0, 0, 0, 0]], bool)
    counts = overlap(generated, real)
    assert counts.tolist() == [2, 1, 1, 6]
    assert dice(counts) == pytest.approx(4 / 6)
    assert jaccard(counts) == pytest.approx(2 / 4)
    assert true_positive_rate(counts) == pytest.approx(2 / 3)
    assert true_negative_rate(counts) == pytest.approx(6 / 7)


def test_nothing_positive_is_undefined() -> None:
    counts = np.array([0.0, 0, 0, 9])
    assert np.isnan([dice(counts), jaccard(counts), true_positive_rate(counts)]).all()
    assert true_negative_rate(counts) == 1


def test_the_real_stain_overlaps_itself_and_white_does_not() -> None:
    white = Contender("white", lambda view: np.full_like(view.real, 255))
    first, second = judge(Contender("perfect", perfect), white).rows.values()
    assert [first[f"DAB+ {name}"].value for name in ("Dice", "IoU", "TPR", "TNR")] == [1, 1, 1, 1]
    assert [second[f"DAB+ {name}"].value for name in ("Dice", "IoU", "TPR", "TNR")] == [0, 0, 0, 1]


def test_parts_are_the_rows_of_their_fields_alone() -> None:
    contender = Contender("the H&E itself", lambda view: view.he)
    both = [
        dataclasses.replace(field, stratum="ab"[i % 2], patient="xyz"[i % 3], group="xyz"[i % 3])
        for i, field in enumerate(fields(6))
    ]
    result = evaluate([contender], both, ruler=RULER)
    parts = result.parts()
    assert list(parts) == ["stratum a", "stratum b", "without patient x", "without patient y", "without patient z"]
    alone = evaluate([contender], both[::2], ruler=RULER)
    part, whole = parts["stratum a"][contender.name], alone.rows[contender.name]
    np.testing.assert_array_equal([e.value for e in part.values()], [e.value for e in whole.values()])


def test_two_patients_are_too_few_to_leave_one_out() -> None:
    two = [dataclasses.replace(field, patient="xy"[i % 2]) for i, field in enumerate(fields(4))]
    assert evaluate([Contender("it", lambda view: view.he)], two, ruler=RULER).parts() == {}


def test_patients_are_the_unit_of_the_bootstrap_where_all_are_known() -> None:
    places = [
        FieldOrigin("1", "s1", patient="p"),
        FieldOrigin("2", "s2", patient="p"),
        FieldOrigin("3", "s3", patient="q"),
    ]
    assert group(places, 512) == (["p", "p", "q"], "patient")
    assert group([*places, FieldOrigin("4", "s4")], 512) == (["s1", "s2", "s3", "s4"], "slide")


def test_error_bins_hold_the_quantiles_of_their_blocks() -> None:
    rng = np.random.default_rng(0)
    predicted = np.concatenate([np.zeros(100), rng.uniform(0.6, 0.9, 200)])
    real = predicted + np.concatenate([np.zeros(100), rng.uniform(-0.1, 0.2, 200)])
    low, high = error_bins(predicted, real)
    assert (low.most, low.blocks, low.low, low.high) == (0.01, 100, 0, 0)
    assert (high.most, high.blocks) == (1, 200)
    assert (high.low, high.high) == pytest.approx((-0.085, 0.185), abs=0.01)
    assert error_bins(predicted[: LEAST_BLOCKS - 1], real[: LEAST_BLOCKS - 1]) == ()


def test_a_bin_with_few_blocks_is_joined() -> None:
    predicted = np.concatenate([np.zeros(100), np.full(5, 0.7)])
    (only,) = error_bins(predicted, predicted)
    assert (only.most, only.blocks) == (1, 105)
