"""Degradation that the mean accuracy hides: recall drop of one class, and collapse of the predictions to one class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.results import Evaluation

# Fewest images of a class for comparing its recall. With fewer images, a single one exceeds the limit.
LEAST_OF_A_CLASS = 20
MAX_RECALL_DROP = 0.05
# Smallest ratio to the trained model's entropy of predictions. A file that predicts one class for nearly every image may keep the mean
# accuracy.
MIN_ENTROPY_SHARE = 0.5


def worst_class(before: Evaluation, after: Evaluation) -> tuple[str, float]:
    """Return the class with the largest recall drop, and that drop.

    Only classes with at least ``LEAST_OF_A_CLASS`` images count. Without such a class the name is empty and the drop 0.
    """
    drops = [
        (was.label, was.recall - now.recall) for was, now in zip(before.classes, after.classes, strict=True) if was.n >= LEAST_OF_A_CLASS
    ]
    return max(drops, key=lambda item: item[1], default=("", 0.0))


def prediction_entropy(outputs: NDArray[np.floating[Any]]) -> float:
    """Return the entropy (nats) of the predicted classes of outputs ``[n, classes]``: 0 if all predictions are the same class."""
    frequencies = np.bincount(outputs.argmax(axis=1)) / max(1, len(outputs))
    used = frequencies[frequencies > 0]
    return abs(float((used * np.log(used)).sum()))
