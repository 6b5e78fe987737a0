"""Scores, metrics and intervals compared with scikit-learn and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support

from edgetl.core.metrics import (
    evaluate,
    evaluate_predictions,
    expected_calibration_error,
    images_for_bound,
    paired_drop,
    reliability_bins,
)
from edgetl.core.output_decoding import sigmoid, softmax
from edgetl.core.results import wilson
from edgetl.core.tasks import DecisionRule, OutputDecoding


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=8))
@settings(deadline=None, max_examples=60)
def test_softmax_sums_to_one_and_keeps_the_order(logits: list[float]) -> None:
    scores = softmax(np.array(logits, np.float32))
    assert math.isclose(float(scores.sum()), 1.0, abs_tol=1e-5)
    assert scores[int(np.argmax(logits))] == scores.max()


def test_softmax_works_along_the_last_axis_in_float32() -> None:
    scores = softmax(np.array([[0.0, math.log(3.0)], [5.0, 5.0]], np.float32))
    assert scores.dtype.name == "float32"
    assert np.allclose(scores, [[0.25, 0.75], [0.5, 0.5]], atol=1e-6)


def test_softmax_of_huge_logits_does_not_overflow() -> None:
    assert softmax(np.array([1e38, -1e38, 1e38], np.float32)).tolist() == [0.5, 0.0, 0.5]


def test_softmax_of_an_image_does_not_depend_on_the_other_images() -> None:
    assert softmax(np.array([[200.0, 0.0], [0.0, 0.0], [-300.0, -300.0]], np.float32)).tolist() == [[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("seed", range(5))
def test_classification_metrics_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    result = evaluate_predictions(truth, predicted, ["a", "b", "c", "d"])
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, labels=range(4), zero_division=0)
    assert np.allclose([score.precision for score in result.classes], precision)
    assert np.allclose([score.recall for score in result.classes], recall)
    assert np.allclose([score.f1 for score in result.classes], f1)
    assert [score.n for score in result.classes] == list(support)
    assert np.isclose(result.macro_f1, f1_score(truth, predicted, average="macro"))
    assert np.array_equal(np.array(result.confusion), confusion_matrix(truth, predicted, labels=range(4)))
    assert np.isclose(result.accuracy.value, np.mean(truth == predicted))


def test_rows_of_the_confusion_matrix_are_true_classes() -> None:
    result = evaluate_predictions(np.array([0, 0, 1]), np.array([0, 1, 1]), ["a", "b"])
    assert result.confusion == ((1, 1), (0, 1))


def test_a_class_without_images_is_not_part_of_macro_f1() -> None:
    result = evaluate_predictions(np.array([0, 1]), np.array([0, 1]), ["a", "b", "absent"])
    absent = result.classes[2]
    assert (absent.label, absent.n, absent.precision, absent.recall, absent.f1) == ("absent", 0, 0.0, 0.0, 0.0)
    assert result.macro_f1 == 1.0


def test_accuracy_without_images_has_the_interval_0_to_1() -> None:
    result = evaluate_predictions(np.array([], np.int64), np.array([], np.int64), ["a", "b"])
    assert (result.accuracy.n, result.accuracy.low, result.accuracy.high, result.macro_f1) == (0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_equal_published_values(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_wilson_intervals_of_no_and_all_images_end_at_0_and_1() -> None:
    for n in range(1, 1000):
        none, all_ = wilson(0, n), wilson(n, n)
        assert (none.value, all_.value) == (0.0, 1.0) and [none.low, all_.high] == pytest.approx([0.0, 1.0], abs=1e-12)
        assert 0.0 <= none.low < none.high < 1.0 and 0.0 < all_.low < all_.high <= 1.0 and all_.n == n


def test_the_wilson_interval_without_images_is_0_to_1() -> None:
    found = wilson(0, 0)
    assert (found.value, found.n, found.low, found.high) == (0.0, 0, 0.0, 1.0)


@pytest.mark.parametrize(("lost", "gained", "equal"), [(3, 1, 6), (0, 0, 5), (0, 4, 4), (9, 0, 0), (1, 0, 0)])
def test_paired_drop_equals_the_formula_of_agresti_and_min(lost: int, gained: int, equal: int) -> None:
    """Half an image is added to each cell of the 2 x 2 table, which makes two images more."""
    before = np.array([True] * lost + [False] * gained + [True] * equal)
    after = np.array([False] * lost + [True] * gained + [True] * equal)
    found = paired_drop(before, after)
    n = lost + gained + equal
    p_lost, p_gained = (lost + 0.5) / (n + 2), (gained + 0.5) / (n + 2)
    center = p_lost - p_gained
    error = math.sqrt((p_lost + p_gained - center**2) / (n + 2))
    assert (found.n, found.value, found.lost, found.gained) == (n, (lost - gained) / n, lost, gained)
    assert [found.low, found.high] == pytest.approx([center - 1.959964 * error, center + 1.959964 * error])
    assert found.bound == pytest.approx(center + 1.644854 * error)


@pytest.mark.parametrize("max_drop", [0.005, 0.01, 0.03, 0.2])
def test_images_for_bound_is_the_smallest_number_without_changed_predictions(max_drop: float) -> None:
    n = images_for_bound(max_drop)
    assert n is not None
    bounds = [paired_drop(*[np.ones(count, np.bool_)] * 2).bound for count in (n - 1, n)]
    assert bounds[1] <= max_drop < bounds[0]


def test_images_for_bound_uses_the_ratios_of_changed_predictions() -> None:
    n = images_for_bound(0.02, lost=0.01)
    assert n == 340

    def bound(count: int) -> float:
        rows = np.arange(count) < round(count * 0.01)
        return paired_drop(np.ones(count, np.bool_), ~rows).bound

    assert bound(400) < 0.02 < bound(300)
    more = images_for_bound(0.02, lost=0.015, gained=0.005)
    assert more == 578, "gained predictions make the drop less certain"


def test_images_for_bound_is_none_if_no_number_is_enough() -> None:
    assert images_for_bound(0.0) is None and images_for_bound(0.01, lost=0.01) is None


def test_paired_drop_without_images_is_0_with_an_interval() -> None:
    found = paired_drop(np.array([], np.bool_), np.array([], np.bool_))
    assert (found.value, found.n) == (0.0, 0) and found.low < 0 < found.bound < found.high


def test_paired_drop_counts_images_that_both_models_get_wrong_in_n_only() -> None:
    found = paired_drop(np.array([True, False, False, False]), np.array([False, False, False, False]))
    assert (found.n, found.value) == (4, 0.25)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(deadline=None, max_examples=60)
def test_wilson_intervals_contain_the_ratio_and_are_symmetric(case: tuple[int, int]) -> None:
    successes, n = case
    found, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert 0.0 <= found.low <= found.value + 1e-12 and found.value - 1e-12 <= found.high <= 1.0
    assert math.isclose(found.low, 1.0 - mirrored.high, abs_tol=1e-9)


def test_reliability_bins_have_the_mean_score_and_the_accuracy_of_their_predictions() -> None:
    bins = reliability_bins(np.array([0.05, 0.1, 0.95, 1.0, 0.98]), np.array([False, True, True, True, False]), 10)
    assert [(item.low, item.high, item.accuracy) for item in bins] == [(0.0, 0.1, wilson(1, 2)), (0.9, 1.0, wilson(2, 3))]
    assert np.allclose([item.score for item in bins], [0.075, 0.97666667])


def test_a_score_of_zero_belongs_to_the_first_bin() -> None:
    (only,) = reliability_bins(np.zeros(3), np.zeros(3, np.bool_))
    assert (only.low, only.accuracy.n) == (0.0, 3)


def test_expected_calibration_error_weighs_bins_by_their_predictions() -> None:
    # Three predictions with a gap of 0.2 and one with a gap of 0.6.
    bins = reliability_bins(np.array([0.8, 0.8, 0.8, 0.6]), np.array([True, True, True, False]), 10)
    assert math.isclose(expected_calibration_error(bins), (3 * 0.2 + 0.6) / 4)
    assert expected_calibration_error(()) == 0.0


def test_expected_calibration_error_of_scores_that_are_probabilities_is_small() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 20_000)
    assert expected_calibration_error(reliability_bins(scores, rng.uniform(0, 1, 20_000) < scores)) < 0.02


def test_log_loss_and_brier_score_of_a_classification_equal_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth, outputs = rng.integers(0, 3, 50), rng.normal(0, 3, (50, 3)).astype(np.float32)
    found = evaluate(OutputDecoding("classification", ("a", "b", "c")), truth, outputs).reliability
    assert found is not None
    scores = softmax(outputs.astype(np.float64))
    assert math.isclose(found.nll, log_loss(truth, scores))
    assert math.isclose(found.brier, float(((scores - np.eye(3)[truth]) ** 2).sum(axis=1).mean()))
    assert found.n == 50
    assert found.ece == expected_calibration_error(reliability_bins(scores.max(axis=1), scores.argmax(axis=1) == truth))


def test_reliability_of_a_multi_label_model_covers_each_decision() -> None:
    rng = np.random.default_rng(2)
    truth, outputs = rng.integers(0, 2, (40, 2)).astype(np.float64), rng.normal(0, 2, (40, 2)).astype(np.float32)
    found = evaluate(OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.5, 0.5))), truth, outputs).reliability
    assert found is not None
    scores = sigmoid(outputs.astype(np.float64))
    assert found.n == 80
    assert math.isclose(found.nll, log_loss(truth.ravel(), scores.ravel()))
    assert math.isclose(found.brier, brier_score_loss(truth.ravel(), scores.ravel()))


def test_a_regression_has_no_reliability() -> None:
    truth, outputs = np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]], np.float32)
    assert evaluate(OutputDecoding("regression", ("size",), DecisionRule(tolerance=0.1)), truth, outputs).reliability is None


def test_reliability_of_outputs_that_are_not_finite_is_finite() -> None:
    outputs = np.array([[np.nan, 0.0], [np.inf, 0.0], [0.0, 200.0]], np.float32)
    found = evaluate(OutputDecoding("classification", ("a", "b")), np.array([0, 0, 0]), outputs).reliability
    assert found is not None
    assert all(math.isfinite(value) for value in (found.ece, found.nll, found.brier))
