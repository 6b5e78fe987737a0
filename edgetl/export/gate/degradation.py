"""Degradation that the mean accuracy hides: recall drop of one class, and collapse of the predictions to one class.

Images without labels have an expected drop in place of a measured one (``edgetl.export.gate.unlabeled``).
"""

from __future__ import annotations

from collections.abc import Sequence
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


def expected_drop_reason(drops: NDArray[np.floating[Any]], predicted: NDArray[np.int64], labels: Sequence[str], max_drop: float) -> str:
    """Return the reason why the expected accuracy drop on images without labels is too large, in total or for one predicted class.

    Args:
        drops: expected accuracy drop of each image, float ``[n]``.
        predicted: class that the trained model predicts for each image, int64 ``[n]``.
        labels: names of the classes.
        max_drop: limit of the mean, 0..1.

    Returns:
        the reason; empty if the drop is within the limits.
    """
    mean = float(drops.mean())
    if not mean <= max_drop + 1e-9:
        return (
            f"the trained model's scores predict an accuracy drop of {mean:.4f} on {len(drops)} target images without labels (limit "
            f"--max-drop {max_drop:g}, {mean - max_drop:.4f} over)"
        )
    limit, counts = max(MAX_RECALL_DROP, max_drop), np.bincount(predicted, minlength=len(labels))
    for index in np.flatnonzero(counts >= LEAST_OF_A_CLASS).tolist():
        if (drop := float(drops[predicted == index].mean())) > limit + 1e-9:
            return (
                f"the trained model's scores predict an accuracy drop of {drop:.4f} on target images that it assigns to class "
                f"{labels[index]} (limit {limit:g}). A larger --max-drop raises this limit"
            )
    return ""


def collapse_reason(trained: NDArray[np.floating[Any]], exported: NDArray[np.floating[Any]]) -> str:
    """Return the reason why the predictions of outputs ``[n, classes]`` collapse to few classes; empty if they do not."""
    entropies = prediction_entropy(trained), prediction_entropy(exported)
    if entropies[1] >= MIN_ENTROPY_SHARE * entropies[0]:
        return ""
    return (
        f"too many images get the same prediction: entropy of the predictions {entropies[1]:.2f} nats, trained model {entropies[0]:.2f} "
        f"(limit: {MIN_ENTROPY_SHARE:.0%} of it). Use a higher precision"
    )


def prediction_entropy(outputs: NDArray[np.floating[Any]]) -> float:
    """Return the entropy (nats) of the predicted classes of outputs ``[n, classes]``: 0 if all predictions are the same class."""
    frequencies = np.bincount(outputs.argmax(axis=1)) / max(1, len(outputs))
    used = frequencies[frequencies > 0]
    return abs(float((used * np.log(used)).sum()))
