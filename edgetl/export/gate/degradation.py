"""Degradation of a file of reduced precision that a mean does not show: of one class, and predictions that collapse to one class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.results import Evaluation

# A class's recall is compared from this many images on: with fewer, one image is more than the limit.
LEAST_OF_A_CLASS = 20
MAX_RECALL_DROP = 0.05
# Ratio to the trained model's entropy of predictions; a file that predicts one class for nearly everything may keep the mean accuracy.
MIN_ENTROPY_SHARE = 0.5


def worst_class(before: Evaluation, after: Evaluation) -> tuple[str, float]:
    """The class of at least ``LEAST_OF_A_CLASS`` images with the largest recall drop, and that drop; an empty name if there is none."""
    drops = [
        (was.label, was.recall - now.recall) for was, now in zip(before.classes, after.classes, strict=True) if was.n >= LEAST_OF_A_CLASS
    ]
    return max(drops, key=lambda item: item[1], default=("", 0.0))


def prediction_entropy(outputs: NDArray[np.floating[Any]]) -> float:
    """Entropy (nats) of the predicted classes of outputs ``[n, classes]``: 0 where one class is always predicted."""
    frequencies = np.bincount(outputs.argmax(axis=1), minlength=outputs.shape[1]) / max(1, len(outputs))
    used = frequencies[frequencies > 0]
    return abs(float((used * np.log(used)).sum()))
