"""What predictions and evaluations look like, and the interval that stands beside every accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgetl.core.config import StrictModel


@dataclass(frozen=True)
class Prediction:
    """One image's answer.

    Attributes:
        label: the class with the highest score.
        score: that class's score, 0..1.
        scores: every class's score in the order of the labels; they sum to 1.
    """

    label: str
    score: float
    scores: tuple[float, ...]


class Proportion(StrictModel):
    """A share of ``n`` images with its Wilson 95 % interval, all 0..1."""

    value: float
    n: int
    low: float
    high: float


class ClassScore(StrictModel):
    """One class's figures; precision and recall are 0 where they are not defined."""

    label: str
    n: int
    precision: float
    recall: float
    f1: float


class Evaluation(StrictModel):
    """A model's answers on labelled images.

    Attributes:
        accuracy: share of images whose top class is the label.
        macro_f1: mean F1 over the classes that have images.
        classes: figures of each class, in the order of the labels.
        confusion: ``confusion[i][j]`` images of class ``i`` were called class ``j``.
    """

    accuracy: Proportion
    macro_f1: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]


class ClassForgetting(StrictModel):
    """One old class: ``n`` test images, and the share answered rightly before and after."""

    label: str
    n: int
    before: float
    after: float


class Forgetting(StrictModel):
    """What a training from a run cost that run's task, on its test images (its validation images where it had no test).

    Attributes:
        through: ``own`` where the new network has the old classes, ``old head`` where they were read with the parent's head.
        before, after: accuracy of the parent, and of the new network.
        lost: their difference; negative where the old task gained.
    """

    parent: str
    through: str
    images: int
    before: float
    after: float
    lost: float
    classes: tuple[ClassForgetting, ...]


def wilson(successes: int, n: int) -> Proportion:
    """The share ``successes / n`` with its 95 % interval (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if n == 0:
        return Proportion(value=0.0, n=0, low=0.0, high=1.0)
    z = 1.959964
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Proportion(value=share, n=n, low=max(0.0, (centre - spread) / scale), high=min(1.0, (centre + spread) / scale))
