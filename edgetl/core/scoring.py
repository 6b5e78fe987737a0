"""Scores from logits, and figures from predictions: NumPy only, so that bench and device count alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.core.results import ClassScore, Evaluation, wilson


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores that sum to 1 along the last axis, from logits ``[…, classes]``."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float32] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def evaluate_predictions(truth: NDArray[np.int64], predicted: NDArray[np.int64], labels: Sequence[str]) -> Evaluation:
    """Accuracy, macro F1, per-class figures and the confusion matrix of ``predicted`` class indices against ``truth``, both ``[n]``."""
    size = len(labels)
    matrix = np.zeros((size, size), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    right = matrix.diagonal()
    classes = tuple(_class_score(matrix, index, label) for index, label in enumerate(labels))
    present = [score.f1 for score in classes if score.n]
    return Evaluation(
        accuracy=wilson(int(right.sum()), len(truth)),
        macro_f1=float(np.mean(present)) if present else 0.0,
        classes=classes,
        confusion=tuple(tuple(int(count) for count in row) for row in matrix),
    )


def _class_score(matrix: NDArray[np.int64], index: int, label: str) -> ClassScore:
    right, n, called = (int(value) for value in (matrix[index, index], matrix[index].sum(), matrix[:, index].sum()))
    precision = right / called if called else 0.0
    recall = right / n if n else 0.0
    f1 = 2 * right / (n + called) if n + called else 0.0
    return ClassScore(label=label, n=n, precision=precision, recall=recall, f1=f1)
