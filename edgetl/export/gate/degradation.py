"""What a reduced file lost against the trained model on the same images, beyond one mean: intervals, classes, and collapsed answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.results import Evaluation

# A class's recall is judged from this many images on: with fewer, one image is more than the limit.
LEAST_OF_A_CLASS = 20
MAX_RECALL_DROP = 0.05
# Of the trained model's entropy of answers; a file that calls nearly everything one class may still keep the mean accuracy.
MIN_ENTROPY_SHARE = 0.5


def worst_class(before: Evaluation, after: Evaluation) -> tuple[str, float]:
    """The class with at least ``LEAST_OF_A_CLASS`` images that lost most recall, and how much; an empty name where there is none."""
    falls = [
        (was.label, was.recall - now.recall) for was, now in zip(before.classes, after.classes, strict=True) if was.n >= LEAST_OF_A_CLASS
    ]
    return max(falls, key=lambda item: item[1], default=("", 0.0))


def answer_entropy(outputs: NDArray[np.floating[Any]]) -> float:
    """Entropy (nats) of how often each class is the answer to outputs ``[n, classes]``: 0 where one class is always called."""
    shares = np.bincount(outputs.argmax(axis=1), minlength=outputs.shape[1]) / max(1, len(outputs))
    used = shares[shares > 0]
    return abs(float((used * np.log(used)).sum()))
