"""What a reduced file lost against the trained model on the same images, beyond one mean: intervals, classes, and collapsed answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.manifest import Fall
from edgetl.core.results import Evaluation

# A class's recall is judged from this many images on: with fewer, one image is more than the limit.
LEAST_OF_A_CLASS = 20
MAX_RECALL_DROP = 0.05
# Of the trained model's entropy of answers; a file that calls nearly everything one class may still keep the mean accuracy.
MIN_ENTROPY_SHARE = 0.5
_TWO_SIDED, _ONE_SIDED = 1.959964, 1.644854


def paired_fall(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Fall:
    """The fall of accuracy from one model to another on the same images, with its 95 % interval and its one-sided 95 % bound.

    Agresti and Min 2005 (doi:10.1002/sim.1781): half an image is added to each cell of the table of both models' hits, so that the
    interval is not empty where no answer changed.

    Args:
        before: bool ``[n]``, where the trained model is right.
        after: bool ``[n]``, where the exported file is.
    """
    n = len(before)
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    more, b, c = n + 2.0, lost + 0.5, gained + 0.5
    centre = (b - c) / more
    spread = math.sqrt(max(0.0, b + c - (b - c) ** 2 / more)) / more
    value = (lost - gained) / n if n else 0.0
    return Fall(value=value, low=centre - _TWO_SIDED * spread, high=centre + _TWO_SIDED * spread, bound=centre + _ONE_SIDED * spread, n=n)


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
