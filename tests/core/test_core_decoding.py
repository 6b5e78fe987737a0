"""Multi-label, regression and ordinal metrics compared with scikit-learn, and output decoding for each task."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, cohen_kappa_score, f1_score, mean_absolute_error, r2_score

from edgetl.core.metrics import NOT_FINITE, average_precision, evaluate, quadratic_kappa
from edgetl.core.output_decoding import decode, describe_truth, scores_of, sigmoid
from edgetl.core.results import Evaluation
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
