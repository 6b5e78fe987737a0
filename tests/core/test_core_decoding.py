"""Multi-label, regression and ordinal metrics compared with scikit-learn, and output decoding for each task."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, average_precision_score, cohen_kappa_score, f1_score, mean_absolute_error, r2_score

from edgetl.core.metrics import NOT_FINITE, average_precision, evaluate, quadratic_kappa
from edgetl.core.output_decoding import decode, describe_truth, nearest_levels, prediction_json, present_labels, scores_of, sigmoid, softmax
from edgetl.core.results import Evaluation, wilson
from edgetl.core.tasks import DecisionRule, OutputDecoding

LABELS = OutputDecoding("multi-label", ("a", "b", "c"), DecisionRule(thresholds=(0.5, 0.3, 0.9)))
NUMBER = OutputDecoding("regression", ("mm",), DecisionRule(spread=2.0, tolerance=0.5))
GRADE = OutputDecoding("ordinal", ("grade",), DecisionRule(tolerance=0.5, ordinal_levels=(1, 5)))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40))
@settings(deadline=None, max_examples=150)
def test_average_precision_equals_scikit_learn_with_ties(rows: list[tuple[bool, int]]) -> None:
    truth, scores = np.array([row[0] for row in rows]), np.array([row[1] / 6 for row in rows])
    found = average_precision(truth, scores)
    if truth.any():
        assert found == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    else:
        assert np.isnan(found)


@pytest.mark.parametrize("seed", range(3))
def test_multi_label_metrics_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, outputs = rng.integers(0, 2, (80, 3)).astype(np.float64), rng.normal(size=(80, 3)).astype(np.float32)
    held = sigmoid(outputs) >= np.array([0.5, 0.3, 0.9], np.float32)
    found = evaluate(LABELS, truth, outputs)
    assert found.multi_label is not None and found.score is found.multi_label.mean_average_precision
    assert found.score.value == pytest.approx(average_precision_score(truth, outputs, average="macro"))
    assert found.macro_f1 == pytest.approx(f1_score(truth, held, average="macro"))
    assert [item.f1 for item in found.classes] == pytest.approx(list(f1_score(truth, held, average=None)))
    assert found.accuracy.value == pytest.approx(accuracy_score(truth, held))
    assert found.multi_label.label_accuracy == pytest.approx((truth == held).mean())
    assert found.score.low < found.score.value < found.score.high and found.score.n == 80


def test_average_precision_of_a_label_without_images_is_none_and_of_all_images_one() -> None:
    truth = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1]], np.float64)
    found = evaluate(LABELS, truth, np.array([[1, 2, 9], [0, 1, -9], [2, 3, 3]], np.float32))
    assert found.multi_label is not None and found.multi_label.average_precision == (1.0, None, 1.0)
    assert found.score.value == 1.0


def test_nan_outputs_rank_last_and_give_no_labels() -> None:
    truth = np.array([[1, 1, 1], [0, 0, 1]], np.float64)
    found = evaluate(LABELS, truth, np.full((2, 3), np.nan, np.float32))
    assert found.multi_label is not None and found.multi_label.average_precision == (0.5, 0.5, 1.0)
    assert found.accuracy.value == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_regression_metrics_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.normal(10, 2, (60, 1))
    outputs = (truth + rng.normal(0, 0.7, (60, 1))).astype(np.float32)
    found = evaluate(NUMBER, truth, outputs)
    assert found.regression is not None and found.score is found.regression.r2
    assert found.regression.mae == pytest.approx(mean_absolute_error(truth, outputs))
    assert found.regression.rmse == pytest.approx(np.sqrt(((truth - outputs) ** 2).mean()))
    assert found.score.value == pytest.approx(r2_score(truth, outputs)) and found.score.low < found.score.value < found.score.high
    assert found.accuracy.value == pytest.approx((np.abs(truth - outputs) <= 0.5).mean())


def test_nan_predictions_give_finite_errors_that_json_can_represent() -> None:
    found = evaluate(NUMBER, np.array([[1.0], [2.0]]), np.full((2, 1), np.nan, np.float32))
    assert found.regression is not None and found.regression.mae == NOT_FINITE and found.accuracy.value == 0.0
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("seed", range(3))
def test_ordinal_metrics_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 6, (90, 1)).astype(np.float64)
    outputs = (truth + rng.normal(0, 0.8, (90, 1))).astype(np.float32)
    grades = np.clip(np.floor(outputs + 0.5), 1, 5)
    found = evaluate(GRADE, truth, outputs)
    assert found.regression is not None and found.regression.kappa is not None
    assert found.regression.kappa == pytest.approx(cohen_kappa_score(truth[:, 0], grades[:, 0], weights="quadratic"))
    assert found.accuracy.value == pytest.approx(accuracy_score(truth, grades)) and found.score is found.accuracy
    assert [item.label for item in found.classes] == ["1", "2", "3", "4", "5"] and len(found.confusion) == 5


def test_ordinal_truth_is_rounded_and_clipped_to_the_levels() -> None:
    truth = np.array([[0.0], [2.4], [2.6], [9.0]])
    found = evaluate(GRADE, truth, np.array([[1.0], [2.0], [3.0], [5.0]], np.float32))
    assert found.accuracy.value == 1.0 and [item.n for item in found.classes] == [1, 1, 1, 0, 1]
    assert found.regression is not None and found.regression.mae == pytest.approx((1.0 + 0.4 + 0.4 + 4.0) / 4)
    assert found.regression.tolerance == 0.5


def test_ordinal_levels_may_be_negative() -> None:
    decoding = OutputDecoding("ordinal", ("grade",), DecisionRule(ordinal_levels=(-2, 1)))
    found = evaluate(decoding, np.array([[-2.0], [1.0]]), np.array([[-2.4], [-1.0]], np.float32))
    assert found.confusion == ((1, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0), (0, 1, 0, 0))


def test_multi_label_intervals_are_percentiles_of_200_draws_with_a_fixed_seed() -> None:
    rng = np.random.default_rng(5)
    truth, outputs = rng.integers(0, 2, (30, 3)).astype(np.float64), rng.normal(size=(30, 3)).astype(np.float32)
    draws, values = np.random.default_rng(0), []
    for _ in range(200):
        weights = draws.multinomial(30, np.full(30, 1 / 30))
        values.append(np.mean([average_precision_score(truth[:, k], outputs[:, k], sample_weight=weights) for k in range(3)]))
    low, high = np.percentile(values, [2.5, 97.5])
    found = evaluate(LABELS, truth, outputs).score
    assert [found.low, found.high] == pytest.approx([low, high])


def test_regression_intervals_are_percentiles_of_200_draws_with_a_fixed_seed() -> None:
    rng = np.random.default_rng(6)
    truth = rng.normal(10, 2, (25, 1))
    outputs = (truth + rng.normal(0, 1, (25, 1))).astype(np.float32)
    draws = np.random.default_rng(0)
    values = [r2_score(truth, outputs, sample_weight=draws.multinomial(25, np.full(25, 1 / 25))) for _ in range(200)]
    low, high = np.percentile(values, [2.5, 97.5])
    found = evaluate(NUMBER, truth, outputs).score
    assert [found.low, found.high] == pytest.approx([low, high])


@pytest.mark.parametrize("decoding", [LABELS, NUMBER, GRADE], ids=["multi-label", "regression", "ordinal"])
def test_metrics_without_images_are_0_with_the_interval_0_to_1(decoding: OutputDecoding) -> None:
    size = len(decoding.labels)
    found = evaluate(decoding, np.zeros((0, size)), np.zeros((0, size), np.float32))
    for proportion in (found.accuracy, found.score):
        assert (proportion.value, proportion.n, proportion.low, proportion.high) == (0.0, 0, 0.0, 1.0)
    if found.multi_label:
        assert found.multi_label.label_accuracy == 0.0 and found.multi_label.average_precision == (None, None, None)
        assert found.multi_label.thresholds == (0.5, 0.3, 0.9) and found.macro_f1 == 0.0
    if found.regression:
        assert (found.regression.mae, found.regression.rmse, found.regression.r2.value) == (0.0, 0.0, 0.0)


def test_multi_label_metrics_have_counts_for_each_label() -> None:
    truth = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0]], np.float64)
    outputs = np.array([[9, 9, 9], [-9, 9, -9], [9, -9, -9]], np.float32)
    found = evaluate(LABELS, truth, outputs)
    assert [(item.label, item.n, item.precision, item.recall, item.f1) for item in found.classes] == [
        ("a", 2, 0.5, 0.5, 0.5),
        ("b", 1, 0.5, 1.0, pytest.approx(2 / 3)),
        ("c", 1, 1.0, 1.0, 1.0),
    ]
    assert found.confusion == () and found.accuracy.value == 0.0 and found.accuracy.n == 3
    assert found.multi_label is not None and found.multi_label.label_accuracy == pytest.approx(6 / 9)
    assert found.macro_f1 == pytest.approx((0.5 + 2 / 3 + 1) / 3)


def test_an_output_of_nan_ranks_after_all_numbers() -> None:
    decoding = OutputDecoding("multi-label", ("a",), DecisionRule(thresholds=(0.5,)))
    found = evaluate(decoding, np.array([[0.0], [1.0], [0.0]]), np.array([[np.nan], [-50.0], [-80.0]], np.float32))
    assert found.score.value == 1.0 and found.score.low == 1.0
    # The sigmoid of -200 is 0 in float32.
    found = evaluate(decoding, np.array([[0.0], [1.0]]), np.array([[np.nan], [-200.0]], np.float32))
    assert found.score.value == 1.0


def test_average_precision_without_images_is_nan() -> None:
    assert np.isnan(average_precision(np.array([], np.bool_), np.array([])))


def test_a_number_exactly_at_the_tolerance_is_correct() -> None:
    found = evaluate(NUMBER, np.array([[1.0], [2.0], [4.0]]), np.array([[1.5], [1.5], [4.5625]], np.float32))
    assert found.accuracy.value == pytest.approx(2 / 3) and (found.macro_f1, found.classes, found.confusion) == (0.0, (), ())
    assert found.regression is not None and found.regression.tolerance == 0.5 and found.regression.kappa is None


def test_r2_of_equal_values_is_one_or_zero() -> None:
    truth = np.array([[2.0], [2.0]])
    assert evaluate(NUMBER, truth, np.array([[2.0], [2.0]], np.float32)).score.value == 1.0
    assert evaluate(NUMBER, truth, np.array([[2.0], [2.5]], np.float32)).score.value == 0.0


def test_r2_of_outputs_that_are_not_finite_is_finite() -> None:
    truth = np.arange(20.0)[:, None]
    nan = evaluate(NUMBER, truth, np.full((20, 1), np.nan, np.float32)).score
    assert (nan.value, nan.low, nan.high) == (0.0, 0.0, 1.0)
    infinite = evaluate(NUMBER, truth, np.full((20, 1), np.inf, np.float32))
    assert (infinite.score.value, infinite.score.low, infinite.score.high) == (-NOT_FINITE, -NOT_FINITE, 1.0)
    assert infinite.regression is not None and (infinite.regression.mae, infinite.regression.rmse) == (NOT_FINITE, NOT_FINITE**0.5)


def test_kappa_of_one_wrong_image_is_zero() -> None:
    assert quadratic_kappa(np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0]])) == 0.0
    assert quadratic_kappa(np.zeros((3, 3), np.int64)) == 1.0


def test_kappa_of_a_single_level_is_one() -> None:
    assert quadratic_kappa(np.array([[7, 0], [0, 0]])) == 1.0
    assert quadratic_kappa(np.array([[0, 5], [5, 0]])) == -1.0


def test_labels_are_present_from_their_threshold() -> None:
    logits = np.array([[1.0, -0.5, 2.0], [-3.0, -3.0, -3.0]], np.float32)
    some, none = decode(LABELS, logits)
    assert some.labels == ("a", "b") and some.label == "c" and some.score == pytest.approx(0.881, abs=1e-3)
    assert none.labels == () and none.scores == tuple(sigmoid(logits)[1].tolist())


def test_regression_returns_the_number_and_ordinal_the_nearest_level() -> None:
    (number,) = decode(NUMBER, np.array([[12.34]], np.float32))
    assert number.label == "mm" and number.value == number.score == number.scores[0] == pytest.approx(12.34)
    values = [prediction.value for prediction in decode(GRADE, np.array([[0.2], [2.5], [3.49], [9.0], [np.nan]], np.float32))]
    assert values == [1.0, 3.0, 3.0, 5.0, 1.0]


def test_only_classification_scores_sum_to_one() -> None:
    outputs = np.array([[100.0, -100.0, 0.0]], np.float32)
    assert scores_of(OutputDecoding(labels=("a", "b", "c")), outputs).sum() == pytest.approx(1.0)
    assert scores_of(LABELS, outputs).tolist() == [[1.0, pytest.approx(0.0, abs=1e-30), 0.5]]
    assert scores_of(NUMBER, outputs) is outputs


def test_describe_truth_returns_text_for_each_task() -> None:
    assert describe_truth(OutputDecoding(labels=("cat", "dog")), 1, ()) == "dog"
    assert describe_truth(LABELS, 0, (1.0, 0.0, 1.0)) == "a, c" and describe_truth(LABELS, 0, (0.0, 0.0, 0.0)) == "none"
    assert describe_truth(NUMBER, 0, (1.25,)) == "1.25" and describe_truth(GRADE, 0, (3.0,)) == "3"


def test_describe_truth_shortens_numbers_to_15_digits() -> None:
    assert describe_truth(NUMBER, 0, (0.1 + 0.2,)) == "0.3" and describe_truth(LABELS, 0, (0.0, 1.0, 0.0)) == "b"


def test_prediction_json_has_the_prediction_and_all_scores() -> None:
    classes = OutputDecoding(labels=("cat", "dog"))
    (one,) = decode(classes, np.array([[0.0, 0.0]], np.float32))
    assert prediction_json(classes, one) == {"label": "cat", "score": 0.5, "scores": {"cat": 0.5, "dog": 0.5}}
    (labels,) = decode(LABELS, np.array([[0.0, 0.0, 0.0]], np.float32))
    assert prediction_json(LABELS, labels) == {"labels": ["a", "b"], "scores": {"a": 0.5, "b": 0.5, "c": 0.5}}
    (number,) = decode(NUMBER, np.array([[1.5]], np.float32))
    assert prediction_json(NUMBER, number) == {"value": 1.5, "scores": {"mm": 1.5}}
    (grade,) = decode(GRADE, np.array([[0.25]], np.float32))
    assert prediction_json(GRADE, grade) == {"value": 1.0, "scores": {"grade": 0.25}}


def test_a_score_equal_to_its_threshold_is_present() -> None:
    decoding = OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.1, 0.7)))
    scores = np.array([[0.1, 0.7], [0.09999, 0.69999]], np.float32)
    assert present_labels(decoding, scores).tolist() == [[True, True], [False, False]]


def test_halves_round_up_to_the_nearest_level_and_nan_is_the_lowest() -> None:
    decoding = OutputDecoding("ordinal", ("x",), DecisionRule(ordinal_levels=(-2, 3)))
    values = np.array([-9.0, -1.5, -0.5, 0.49, 0.5, 2.5, 99.0, np.nan, np.inf, -np.inf])
    found = nearest_levels(decoding, values)
    assert found.tolist() == [-2, -1, 0, 0, 1, 3, 3, -2, 3, -2] and found.dtype == np.int64


def test_a_level_is_computed_in_double_precision() -> None:
    """0.49999997 is the largest float32 number below a half. In float32 its sum with 0.5 is 1."""
    decoding = OutputDecoding("ordinal", ("x",), DecisionRule(ordinal_levels=(0, 3)))
    assert nearest_levels(decoding, np.array([np.nextafter(np.float32(0.5), np.float32(0))])).tolist() == [0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_equals_its_definition_and_keeps_shape_and_type(dtype: type) -> None:
    logits: NDArray[np.float32] = np.array([[-3.0, -0.25, 0.0], [0.5, 2.0, 800.0]], dtype)
    found = sigmoid(logits)
    assert found.dtype == dtype and found == pytest.approx(1 / (1 + np.exp(-logits.astype(np.longdouble))).astype(np.float64), rel=1e-6)
    assert sigmoid(np.array([-800.0], dtype))[0] == pytest.approx(0.0, abs=1e-300)


def test_softmax_of_three_dimensions_uses_the_last_axis() -> None:
    found = softmax(np.zeros((2, 3, 4), np.float32))
    assert np.allclose(found, 0.25)


@pytest.mark.parametrize(
    ("decoding", "outputs", "problem"),
    [
        (LABELS, 2, "3 thresholds for 2 labels"),
        (NUMBER, 2, "has 2 outputs, but needs one"),
        (OutputDecoding("ordinal", ("x",)), 1, "has no levels"),
        (OutputDecoding("regression", ("x",), DecisionRule(ordinal_levels=(0, 3))), 1, "a regression model has ordinal levels"),
        (OutputDecoding("ordinal", ("x",), DecisionRule(ordinal_levels=(5, 5))), 1, "2 to 100 levels"),
        (OutputDecoding("classification", ("a", "b"), DecisionRule(thresholds=(0.5, 0.5))), 2, "2 thresholds for 2 labels"),
    ],
)
def test_problem_returns_the_reason_of_an_invalid_decision_rule(decoding: OutputDecoding, outputs: int, problem: str) -> None:
    assert problem in (decoding.decision_rule.problem(decoding.task, outputs) or "")


def test_the_temperature_divides_the_outputs_and_keeps_the_order() -> None:
    outputs = np.array([[4.0, 0.0, 2.0]], np.float32)
    warm = OutputDecoding("classification", ("a", "b", "c"), DecisionRule(temperature=2.0))
    assert np.array_equal(scores_of(warm, outputs), softmax(outputs / np.float32(2)))
    assert np.array_equal(scores_of(warm.uncalibrated, outputs), softmax(outputs))
    (found,) = decode(warm, outputs)
    assert found.label == "a"
    assert found.score == pytest.approx(float(softmax(outputs / np.float32(2))[0, 0]))


def test_the_temperature_of_a_multi_label_model_divides_each_output() -> None:
    outputs = np.array([[4.0, 0.0, -2.0]], np.float32)
    rule = DecisionRule(temperature=2.0, thresholds=(0.5, 0.3, 0.9))
    assert np.array_equal(scores_of(OutputDecoding("multi-label", ("a", "b", "c"), rule), outputs), sigmoid(outputs / np.float32(2)))


def test_an_image_with_a_highest_score_below_the_threshold_has_no_label() -> None:
    decoding = OutputDecoding("classification", ("a", "b"), DecisionRule(reject_below=0.7))
    unknown, known = decode(decoding, np.log(np.array([[0.65, 0.35], [0.25, 0.75]], np.float32)))
    assert (unknown.label, known.label) == (None, "b")
    assert unknown.score == pytest.approx(0.65) and unknown.scores == pytest.approx((0.65, 0.35))
    assert prediction_json(decoding, unknown)["label"] is None


def test_a_score_equal_to_the_threshold_is_known() -> None:
    (found,) = decode(OutputDecoding("classification", ("a", "b"), DecisionRule(reject_below=0.5)), np.zeros((1, 2), np.float32))
    assert found.label == "a"


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (OutputDecoding("regression", ("mm",), DecisionRule(temperature=2.0)), "a regression model has the temperature 2"),
        (OutputDecoding("multi-label", ("a",), DecisionRule(thresholds=(0.5,), reject_below=0.5)), "only a classification can"),
    ],
)
def test_a_calibration_that_the_task_does_not_have_is_a_problem_of_the_decision_rule(decoding: OutputDecoding, message: str) -> None:
    assert message in (decoding.decision_rule.problem(decoding.task, len(decoding.labels)) or "")


def test_coverage_and_precision_count_images_above_the_threshold() -> None:
    decoding = OutputDecoding("classification", ("a", "b"), DecisionRule(reject_below=0.7))
    outputs = np.log(np.array([[0.65, 0.35], [0.25, 0.75], [0.9, 0.1], [0.2, 0.8]], np.float32))
    found = evaluate(decoding, np.array([0, 1, 0, 0]), outputs).rejection
    assert found is not None
    assert (found.below, found.coverage, found.precision) == (0.7, wilson(3, 4), wilson(2, 3))


def test_an_evaluation_without_a_threshold_has_no_rejection() -> None:
    assert evaluate(OutputDecoding("classification", ("a", "b")), np.array([0]), np.zeros((1, 2), np.float32)).rejection is None
