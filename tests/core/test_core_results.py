"""Results: consistency of metrics with the task, the task metric, forgotten classes, and the number of images that may change."""

from __future__ import annotations

from typing import Any

import pytest

from edgetl.core.results import (
    ClassForgetting,
    ClassScore,
    Evaluation,
    Forgetting,
    MultiLabelFigures,
    Proportion,
    RegressionFigures,
    images_that_may_change,
)
from edgetl.core.tasks import Task

ACCURACY, OTHER = (Proportion(value=value, n=10, low=0.1, high=0.9) for value in (0.5, 0.7))
CLASSES = tuple(ClassScore(label=name, n=5, precision=0.5, recall=0.5, f1=0.5) for name in "ab")
CONFUSION = ((3, 2), (2, 3))
NUMBERS = RegressionFigures(mae=1.0, rmse=2.0, r2=OTHER, tolerance=0.5)
LEVELS = RegressionFigures(mae=1.0, rmse=2.0, r2=OTHER, tolerance=0.5, kappa=0.3)


def _labels(precisions: int = 2, thresholds: int = 2) -> MultiLabelFigures:
    return MultiLabelFigures(
        mean_average_precision=OTHER, label_accuracy=0.6, average_precision=(0.5,) * precisions, thresholds=(0.5,) * thresholds
    )


def _evaluation(**changes: Any) -> Evaluation:
    return Evaluation.model_validate({"accuracy": ACCURACY, "macro_f1": 0.5, "classes": CLASSES, "confusion": CONFUSION, **changes})


CLASSIFICATION = _evaluation()
MULTI_LABEL = _evaluation(confusion=(), multi_label=_labels())
REGRESSION = _evaluation(classes=(), confusion=(), regression=NUMBERS)
ORDINAL = _evaluation(regression=LEVELS)


@pytest.mark.parametrize(
    ("evaluation", "task", "outputs"),
    [(CLASSIFICATION, "classification", 2), (MULTI_LABEL, "multi-label", 2), (REGRESSION, "regression", 1), (ORDINAL, "ordinal", 1)],
    ids=["classification", "multi-label", "regression", "ordinal"],
)
def test_metrics_of_the_task_have_no_problem(evaluation: Evaluation, task: Task, outputs: int) -> None:
    assert evaluation.problem(task, outputs) is None
    for other in ("classification", "multi-label", "regression", "ordinal"):
        if (other == task) or {other, task} == {"regression", "ordinal"}:
            continue
        assert evaluation.problem(other, outputs) == f"the metrics are not those of the task {other}"


@pytest.mark.parametrize(
    ("evaluation", "task", "outputs", "problem"),
    [
        (CLASSIFICATION, "classification", 3, "there are metrics of 2 classes, but 3 labels"),
        (MULTI_LABEL, "multi-label", 3, "there are metrics of 2 classes, but 3 labels"),
        (
            _evaluation(confusion=(), multi_label=_labels(precisions=3)),
            "multi-label",
            2,
            "there is not one average precision and one threshold for each of 2 labels",
        ),
        (
            _evaluation(confusion=(), multi_label=_labels(thresholds=1)),
            "multi-label",
            2,
            "there is not one average precision and one threshold for each of 2 labels",
        ),
        (_evaluation(confusion=((1, 2),)), "classification", 2, "the size of the confusion matrix is not the number of classes"),
        (_evaluation(confusion=((1, 2), (3,))), "classification", 2, "the size of the confusion matrix is not the number of classes"),
        (_evaluation(confusion=((1,),)), "classification", 2, "the size of the confusion matrix is not the number of classes"),
    ],
    ids=["classes", "labels", "precisions", "thresholds", "rows", "columns", "size"],
)
def test_metrics_of_another_size_have_a_problem(evaluation: Evaluation, task: Task, outputs: int, problem: str) -> None:
    assert evaluation.problem(task, outputs) == problem


def test_metrics_without_a_confusion_matrix_have_no_problem() -> None:
    assert _evaluation(confusion=()).problem("classification", 2) is None


def test_the_task_metric_is_accuracy_mean_average_precision_or_r2() -> None:
    assert CLASSIFICATION.score is CLASSIFICATION.accuracy and ORDINAL.score is ORDINAL.accuracy
    assert MULTI_LABEL.score.value == 0.7 and REGRESSION.score.value == 0.7


def test_most_forgotten_classes_have_an_interval_above_zero_and_are_sorted_by_drop() -> None:
    figures = {"a": (0.9, 0.8, 0.01), "b": (0.9, 0.2, 0.5), "c": (0.9, 0.1, 0.0), "d": (0.5, 0.2, 0.1), "e": (0.5, 0.6, -0.2)}
    classes = tuple(
        ClassForgetting(label=name, n=9, before=before, after=after, low=low, high=1.0) for name, (before, after, low) in figures.items()
    )
    whole = Forgetting(parent="p", through="own", images=45, before=0.9, after=0.5, drop=0.4, low=0.2, high=0.6, classes=classes)
    assert [item.label for item in whole.most_forgotten()] == ["b", "d", "a"]


@pytest.mark.parametrize(("n", "limit", "images"), [(85, 0.01, 0), (100, 0.29, 29), (359, 0.01, 3), (200, 0.015, 3), (50, 1.0, 50)])
def test_the_number_of_images_that_may_change_is_rounded_down(n: int, limit: float, images: int) -> None:
    """100 x 0.29 is 28.999999999999996 in floating point."""
    assert images_that_may_change(n, limit) == images
