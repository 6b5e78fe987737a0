"""Results: predictions, evaluations, accuracy drops, forgetting; each figure with its confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgetl.core.config import StrictModel
from edgetl.core.tasks import Task


@dataclass(frozen=True)
class Prediction:
    """Prediction of one image.

    Attributes:
        label: the class with the highest score; of a multi-label model the likeliest label, of a regression its column.
        score: that class's or label's score, 0..1; of a regression the network's output, in the values' unit.
        scores: every label's score in the order of the labels: of classes they sum to 1, of a multi-label model each is 0..1.
        labels: multi-label: those whose score reaches their threshold, in the order of the labels; there may be none.
        value: regression: the number; ordinal: the nearest level.
    """

    label: str
    score: float
    scores: tuple[float, ...]
    labels: tuple[str, ...] = ()
    value: float | None = None


class Proportion(StrictModel):
    """A figure of ``n`` images with its 95 % interval: a share (0..1, Wilson's), average precision, or R² (at most 1; by bootstrap)."""

    value: float
    n: int
    low: float
    high: float


class AccuracyDrop(StrictModel):
    """Accuracy drop between two models on the same ``n`` images, 0..1; negative where the accuracy rose.

    ``low`` and ``high`` are the 95 % interval, ``bound`` the upper one-sided 95 % bound (Agresti and Min 2005, paired).
    """

    value: float
    low: float
    high: float
    bound: float
    n: int


class ClassScore(StrictModel):
    """One class's figures; precision and recall are 0 where they are not defined."""

    label: str
    n: int
    precision: float
    recall: float
    f1: float


class MultiLabelFigures(StrictModel):
    """Figures of labels that stand beside each other.

    Attributes:
        mean_average_precision: mean of ``average_precision`` over the labels that an image has, with its bootstrap interval.
        label_accuracy: share of the decisions (images times labels) that are right.
        average_precision: of each label, independent of thresholds; none where no image has it. 1 where all have it.
        thresholds: that the decisions were made with.
    """

    mean_average_precision: Proportion
    label_accuracy: float
    average_precision: tuple[float | None, ...]
    thresholds: tuple[float, ...]


class RegressionFigures(StrictModel):
    """Figures of numbers.

    Attributes:
        mae, rmse: mean absolute and root mean squared error, in the values' unit.
        r2: share of the variance that is explained, with its bootstrap interval; below 0 the mean would predict better.
        tolerance: largest error of a right prediction.
        kappa: ordinal: quadratic-weighted kappa of the nearest levels (Cohen 1968, doi:10.1037/h0026256).
    """

    mae: float
    rmse: float
    r2: Proportion
    tolerance: float
    kappa: float | None = None


class Evaluation(StrictModel):
    """Metrics of a model on labelled images.

    Attributes:
        accuracy: share of right predictions: the top class is the label, every label is right, the number is within the tolerance, or
            the nearest level is the level.
        macro_f1: mean F1 over the classes (labels, levels) that have images; 0 for numbers.
        classes: figures of each class (label, level), in their order; none for numbers.
        confusion: ``confusion[i][j]`` images of class (level) ``i`` were called ``j``; none for labels and numbers.
        multi_label: figures of a multi-label model.
        regression: figures of a regression or an ordinal model.
    """

    accuracy: Proportion
    macro_f1: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    multi_label: MultiLabelFigures | None = None
    regression: RegressionFigures | None = None

    def problem(self, task: Task, outputs: int) -> str | None:
        """Reason why these cannot be the figures of ``task`` for a network with ``outputs`` outputs; none if they can."""
        labels, sizes = self.multi_label, {len(self.confusion), *map(len, self.confusion)}
        if (labels is not None) != (task == "multi-label") or (self.regression is not None) != (task in ("regression", "ordinal")):
            return f"figures of another task than {task}"
        if task in ("classification", "multi-label") and len(self.classes) != outputs:
            return f"figures of {len(self.classes)} classes, and there are {outputs} labels"
        if labels and {len(labels.average_precision), len(labels.thresholds)} != {outputs}:
            return f"not one average precision and one threshold for each of {outputs} labels"
        if sizes not in ({0}, {len(self.classes)}):
            return "a confusion matrix of other classes"
        return None

    @property
    def score(self) -> Proportion:
        """The one figure that the export gate judges and a bundle carries: accuracy, mean average precision of labels, R² of numbers."""
        if self.multi_label is not None:
            return self.multi_label.mean_average_precision
        if self.regression is not None and self.regression.kappa is None:
            return self.regression.r2
        return self.accuracy


class ClassForgetting(StrictModel):
    """Forgetting of one class of the previous task: ``n`` test images, and the accuracy before and after.

    ``low`` and ``high`` are the 95 % interval of the drop (Agresti and Min 2005, paired).
    """

    label: str
    n: int
    before: float
    after: float
    low: float
    high: float


class Forgetting(StrictModel):
    """Forgetting of the parent run's task, on its test images that neither of the two networks has seen.

    Attributes:
        through: ``own`` where the new network has the previous classes, ``previous head`` where they were read with the parent's head, and
            ``previous column`` where the parent stands in the new network as a whole.
        before, after: accuracy of the parent, and of the new network.
        drop: their difference; negative where the previous task gained.
        low, high: the 95 % interval of ``drop``, paired.
    """

    parent: str
    through: str
    images: int
    before: float
    after: float
    drop: float
    low: float
    high: float
    classes: tuple[ClassForgetting, ...]

    def most_forgotten(self) -> tuple[ClassForgetting, ...]:
        """Classes whose drop is larger than chance explains (its interval lies above 0), the largest first."""
        sure = [item for item in self.classes if item.low > 0]
        return tuple(sorted(sure, key=lambda item: item.after - item.before))


def images_that_may_change(n: int, max_drop: float) -> int:
    """Number of ``n`` validation images that a file may lose, on balance, before its accuracy drops by more than ``max_drop``."""
    return math.floor(n * max_drop + 1e-9)


def wilson(successes: int, n: int) -> Proportion:
    """The share ``successes / n`` with its 95 % interval (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if n == 0:
        return Proportion(value=0.0, n=0, low=0.0, high=1.0)
    z = 1.959964
    share = successes / n
    center = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Proportion(value=share, n=n, low=max(0.0, (center - spread) / scale), high=min(1.0, (center + spread) / scale))
