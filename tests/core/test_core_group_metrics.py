"""Group metrics: rates, gaps and findings of fair and unfair models."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from edgetl.core.group_metrics import LEAST_GROUP, Compared, GroupTable, Outcomes, compare_columns, outcomes_of
from edgetl.core.results import wilson
from edgetl.core.tasks import DecisionRule, OutputDecoding

CLASSES = OutputDecoding("classification", ("no", "yes"))


def _outcomes(truth: list[int], predicted: list[int], name: str = "model") -> Outcomes:
    return outcomes_of(name, CLASSES, np.array(truth), np.eye(2, dtype=np.float32)[predicted])


def _compare(values: list[str], *models: Outcomes, reference: str | None = None) -> GroupTable:
    (table,) = compare_columns({"age": values}, Compared(models, models[0].model, reference))
    return table


def test_rates_of_a_group_match_a_count_by_hand() -> None:
    truth, predicted = [1, 1, 1, 0, 0, 1, 0], [1, 0, 1, 1, 0, 1, 0]
    table = _compare(["young"] * 5 + ["old"] * 2, _outcomes(truth, predicted))
    old, young = table.models[0].groups
    assert (young.group, young.accuracy) == ("young", wilson(3, 5))
    assert young.rates[1].true_positive == wilson(2, 3) and young.rates[1].false_positive == wilson(1, 2)
    assert young.rates[0].true_positive == wilson(1, 2) and old.rates[0].false_positive == wilson(0, 1)
    assert not old.compared and table.models[0].finding == "not-compared"


def test_images_without_a_value_are_counted_and_left_out() -> None:
    table = _compare(["a", "", "b", ""], _outcomes([0, 1, 1, 0], [0, 0, 1, 1]))
    assert (table.images, table.without) == (2, 2)
    assert [group.accuracy.value for group in table.models[0].groups] == [1.0, 1.0]


def test_groups_are_sorted_by_their_numbers() -> None:
    table = _compare(["70+", "3-9", "10-19", "20-29"], _outcomes([0] * 4, [0] * 4))
    assert [group.group for group in table.models[0].groups] == ["3-9", "10-19", "20-29", "70+"]


@pytest.mark.parametrize(("size", "finding"), [(LEAST_GROUP - 1, "not-compared"), (LEAST_GROUP, "alarm")])
def test_a_group_is_compared_from_30_images_on(size: int, finding: str) -> None:
    truth = [0, 1] * 100 + [0] * size
    table = _compare(["large"] * 200 + ["small"] * size, _outcomes(truth, [0, 1] * 100 + [1] * size))
    assert table.models[0].finding == finding and len(table.models[0].groups) == 2


def test_a_large_gap_of_few_images_is_uncertain() -> None:
    truth = [0, 1] * 40
    wrong = [1 - label if index in (0, 2, 4, 6, 41) else label for index, label in enumerate(truth)]
    (model,) = _compare(["a"] * 40 + ["b"] * 40, _outcomes(truth, wrong)).models
    assert model.gap and model.gap.value == pytest.approx(0.075) and model.finding == "uncertain"
    assert "may be chance" in model.reason and "lower for a than for b" in model.reason


def test_equal_accuracy_with_opposite_errors_violates_equalized_odds() -> None:
    truth = [0, 1] * 200
    predicted = [1 if index % 10 == 0 else label for index, label in enumerate(truth[:200])]
    predicted += [0 if index % 10 == 1 else label for index, label in enumerate(truth[200:])]
    (model,) = _compare(["a"] * 200 + ["b"] * 200, _outcomes(truth, predicted)).models
    assert model.gap and model.gap.value == 0 and model.ratio == 1
    assert model.equalized_odds and model.equalized_odds.value == pytest.approx(0.2) and model.finding == "alarm"
    assert "for a than for b" in model.reason or "for b than for a" in model.reason


def test_a_column_that_equals_the_label_compares_recalls_without_odds() -> None:
    truth = [0] * 60 + [1] * 60
    table = _compare(["no"] * 60 + ["yes"] * 60, _outcomes(truth, [0] * 90 + [1] * 30))
    assert table.is_label and table.models[0].equalized_odds is None and table.models[0].finding == "alarm"


def test_drops_are_paired_with_the_reference_model() -> None:
    truth, values = [0, 1] * 50, ["a", "b"] * 50
    worse = [1 if index < 20 and not label else label for index, label in enumerate(truth)]
    table = _compare(values, _outcomes(truth, truth, "trained"), _outcomes(truth, worse, "int8"), reference="trained")
    trained, quantized = table.models
    assert trained.drop is None and quantized.drop and (quantized.drop.lost, quantized.drop.n) == (10, 100)
    assert [group.drop.lost for group in quantized.groups if group.drop] == [10, 0]


@pytest.mark.parametrize(
    ("decoding", "truth", "outputs", "accuracy"),
    [
        (OutputDecoding("regression", ("mm",), DecisionRule(tolerance=1.0)), [[1.0], [2.0]], [[1.9], [3.5]], 0.5),
        (OutputDecoding("ordinal", ("grade",), DecisionRule(tolerance=0.5, ordinal_levels=(0, 3))), [[1.0], [5.0]], [[1.4], [2.9]], 1.0),
        (OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.5, 0.5))), [[1, 0], [1, 1]], [[2, -2], [2, -2]], 0.5),
    ],
)
def test_every_task_has_group_accuracies(decoding: OutputDecoding, truth: object, outputs: object, accuracy: float) -> None:
    found = outcomes_of("model", decoding, np.array(truth, float), np.array(outputs, np.float32))
    (model,) = _compare(["x", "x"], found).models
    assert model.groups[0].accuracy.value == accuracy
    assert len(model.groups[0].rates) == (2 if decoding.task == "multi-label" else 0)


def _model_of_two_groups(seed: int, *, noise: float) -> GroupTable:
    """Fit a ridge regression on random features of digits (5 to 9, or lower).

    A ratio ``noise`` of the training labels of one group is random.
    """
    pixels, digits = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    group, labels = rng.integers(0, 2, len(digits)), (digits >= 5).astype(int)
    features = np.maximum((pixels / 16 - 0.3) @ rng.normal(size=(64, 200)), 0)
    rows: NDArray[np.float64] = np.hstack([features, features * group[:, None], np.eye(2)[group]])
    train = rng.random(len(digits)) < 0.4
    given = np.where((group == 1) & (rng.random(len(digits)) < noise), rng.integers(0, 2, len(digits)), labels)[train]
    weights = np.linalg.solve(rows[train].T @ rows[train] + 10 * np.eye(rows.shape[1]), rows[train].T @ (2.0 * given - 1))
    outputs = np.stack([-(rows[~train] @ weights), rows[~train] @ weights], axis=1).astype(np.float32)
    names = np.array(["clean", "noised"])[group[~train]]
    return _compare(names.tolist(), outcomes_of("model", CLASSES, labels[~train], outputs))


def test_noised_labels_of_one_group_raise_the_alarm_in_20_seeds_and_clean_labels_do_not() -> None:
    unfair = [_model_of_two_groups(seed, noise=0.8).models[0] for seed in range(20)]
    assert {model.finding for model in unfair} == {"alarm"}
    assert {model.gap.lowest for model in unfair if model.gap} == {"noised"}
    fair = [_model_of_two_groups(seed, noise=0.0).models[0] for seed in range(20)]
    assert "alarm" not in {model.finding for model in fair}


def test_p_values_of_equal_groups_are_not_too_small() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        truth = rng.integers(0, 2, 400)
        predicted = np.where(rng.random(400) < 0.8, truth, 1 - truth)
        values = rng.choice(list("abcdefgh"), 400).tolist()
        found.append(_compare(values, outcomes_of("model", CLASSES, truth, np.eye(2, dtype=np.float32)[predicted])).models[0])
    assert sum(model.finding == "alarm" for model in found) <= 8
    assert np.mean([model.gap.value >= 0.05 for model in found if model.gap]) > 0.9, "the gap alone would always be an alarm"
