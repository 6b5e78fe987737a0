"""Results: predictions, evaluation metrics, accuracy drops and forgetting, with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgetl.core.config import StrictModel
from edgetl.core.tasks import Task


@dataclass(frozen=True)
class Prediction:
    """Prediction of an image.

    Attributes:
        label: class (or label) with the highest score. None if the image is unknown: the highest score of a classification is less than
            ``DecisionRule.reject_below``. Regression and ordinal: name of the value column.
        score: highest score, 0..1; of the anomaly in anomaly detection. Regression and ordinal: output, in the unit of the values.
        scores: score of each label, in the order of the labels. Classification: they sum to 1. Multi-label: each is 0..1.
        labels: labels with a score of at least their threshold, in the order of the labels; may be empty. Multi-label only.
        value: predicted number (regression) or nearest level (ordinal); none for other tasks.
        heat_map: anomaly score of each position, 0..1, in rows from top to bottom. Anomaly detection only.
    """

    label: str | None
    score: float
    scores: tuple[float, ...]
    labels: tuple[str, ...] = ()
    value: float | None = None
    heat_map: tuple[tuple[float, ...], ...] = ()


class Proportion(StrictModel):
    """Metric on ``n`` images with its 95 % confidence interval.

    Attributes:
        value: ratio of images (0..1), mean average precision (0..1), or R² (at most 1).
        n: number of images.
        low: lower limit of the 95 % interval: Wilson's for ratios, bootstrap for the others.
        high: upper limit of the 95 % interval.
    """

    value: float
    n: int
    low: float
    high: float


def validation_name(folds: int) -> str:
    """Return the name of validation figures: ``validation``, or ``cross-validation (5 folds)`` for out-of-fold figures."""
    return f"cross-validation ({folds} folds)" if folds else "validation"


def validation_images(folds: int) -> str:
    """Return the name of the images of validation figures: ``validation images``, or ``cross-validated images`` with folds."""
    return "cross-validated images" if folds else "validation images"


class AccuracyDrop(StrictModel):
    """Accuracy drop between two models on the same images (paired; Agresti and Min 2005).

    Attributes:
        value: accuracy drop, -1..1; negative if the accuracy increased.
        low: lower limit of the two-sided 95 % interval.
        high: upper limit of the two-sided 95 % interval.
        bound: one-sided 95 % bound: the drop is below it with a confidence of 95 %. ``--strict`` compares it with ``--max-drop``.
        n: number of images.
        lost: number of images that only the first model classifies correctly.
        gained: number of images that only the second model classifies correctly.
    """

    value: float
    low: float
    high: float
    bound: float
    n: int
    lost: int = 0
    gained: int = 0


class Agreement(StrictModel):
    """Agreement of an exported file with the trained model on the same images.

    Attributes:
        n: number of compared images.
        max_relative_error: largest difference of a logit, relative to the largest logit.
        top1_agreement: ratio of images with the same class, number (within the tolerance) or level; of equal decisions on labels.
        confident_n: number of images (decisions) with a confident prediction of the trained model, such as a top score of at least 0.6.
        confident_agreement: ratio of these images with the same prediction; 1 if there are none.
        median_cosine: median over the images of the cosine similarity of the outputs minus the trained model's mean; for several labels.
        score_correlation: anomaly detection: the smaller correlation with the trained scores, on normal images and with confetti noise.
    """

    n: int
    max_relative_error: float
    top1_agreement: float
    confident_n: int
    confident_agreement: float
    median_cosine: float | None = None
    score_correlation: float | None = None


class UnlabeledAgreement(StrictModel):
    """Agreement of an exported file with the trained model on images whose labels are not used.

    Attributes:
        n: number of compared predictions: labeled images, ``target`` and ``unlabeled`` images, and ``crops`` together.
        top1_agreement: ratio of equal predictions, as in ``Agreement``.
        expected_drop: accuracy drop that the scores of the trained model predict, 0..1. Mean of its score for its own class minus its
            score for the class that the file predicts. A change between two equally likely classes costs nothing. Classification only.
        beyond_half_margin: ratio of images with a logit error above half the margin. The margin is the difference of the trained model's
            two largest logits. The error is the largest change of a difference between the top class's logit and another logit.
        relative_error: median error divided by the median margin.
        target: number of unlabeled target images of an adapted run.
        unlabeled: number of images of ``--unlabeled``, for other runs.
        crops: number of random crops of the gate's images. With fewer than ten of them, calibration images are cropped too.
    """

    n: int
    top1_agreement: float
    expected_drop: float | None = None
    beyond_half_margin: float | None = None
    relative_error: float | None = None
    target: int = 0
    unlabeled: int = 0
    crops: int = 0

    @property
    def images(self) -> str:
        """Numbers of the compared images as text."""
        others = {"target images": self.target, "images of --unlabeled": self.unlabeled, "random crops": self.crops}
        counts = {"labeled images": self.n - sum(others.values()), **others}
        parts = [f"{count} {name}" for name, count in counts.items() if count]
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


class Attempt(StrictModel):
    """Attempt of the quantization search, with its results on the gate's images; without results if the tools wrote no file.

    Attributes:
        method: quantization method.
        accuracy: task metric (``Evaluation.score``).
        drop: accuracy drop that the accuracy gate limits, 0..1. Without labels: the expected drop.
        confident_agreement: as in ``Agreement``.
        passed: true if the accuracy gate accepted the attempt.
        accuracy_drop: accuracy drop with its interval. Classification only.
        unlabeled: agreement on unlabeled images; none if the labeled images were rejected.
        reason: reason of the rejection; empty if accepted.
    """

    method: str
    accuracy: float | None = None
    drop: float | None = None
    confident_agreement: float | None = None
    passed: bool = False
    accuracy_drop: AccuracyDrop | None = None
    unlabeled: UnlabeledAgreement | None = None
    reason: str = ""


class ClassScore(StrictModel):
    """Metrics of a class or label.

    Attributes:
        label: name of the class.
        n: number of images of the class.
        precision: 0..1; 0 if undefined.
        recall: 0..1; 0 if undefined.
        f1: 0..1; 0 if undefined.
    """

    label: str
    n: int
    precision: float
    recall: float
    f1: float


class MultiLabelFigures(StrictModel):
    """Metrics of multi-label classification.

    Attributes:
        mean_average_precision: mean of ``average_precision`` over the labels that at least one image has, with its bootstrap interval.
        label_accuracy: ratio of correct decisions (images times labels).
        average_precision: average precision of each label. It does not depend on thresholds. None if no image has the label, 1 if all
            images have it.
        thresholds: score from which each label is present.
    """

    mean_average_precision: Proportion
    label_accuracy: float
    average_precision: tuple[float | None, ...]
    thresholds: tuple[float, ...]


class RegressionFigures(StrictModel):
    """Metrics of regression and ordinal predictions.

    Attributes:
        mae, rmse: mean absolute error and root mean squared error, in the unit of the values.
        r2: coefficient of determination, with its bootstrap interval. Below 0 the mean value predicts better.
        tolerance: largest error of a correct prediction, in the unit of the values.
        kappa: quadratic-weighted kappa of the nearest levels (Cohen 1968, doi:10.1037/h0026256). Ordinal only.
    """

    mae: float
    rmse: float
    r2: Proportion
    tolerance: float
    kappa: float | None = None


class AnomalyFigures(StrictModel):
    """Metrics of anomaly detection.

    Attributes:
        auroc: area under the ROC curve, with its bootstrap interval. None without normal images or without anomalies.
        false_alarms: ratio of normal images above the threshold, with its Wilson interval.
        detected: ratio of anomalies above the threshold, with its Wilson interval.
        synthetic: number of anomalies that are normal images with a synthetic defect. 0: the anomalies are labeled images.
    """

    auroc: Proportion | None
    false_alarms: Proportion
    detected: Proportion
    synthetic: int = 0


class ReliabilityBin(StrictModel):
    """Bin of a reliability diagram: predictions with a score in one range.

    Attributes:
        low: lower limit of the scores, 0..1, exclusive above 0.
        high: upper limit of the scores, 0..1, inclusive.
        score: mean score, 0..1.
        accuracy: ratio of correct predictions, with its interval. In a calibrated model it equals the mean score.
    """

    low: float
    high: float
    score: float
    accuracy: Proportion


class Reliability(StrictModel):
    """Reliability of scores as probabilities. Classification: of the highest score. Multi-label: of each score (images times labels).

    Attributes:
        n: number of predictions.
        ece: expected calibration error, 0..1: mean absolute difference between score and accuracy over 15 bins of equal width, weighted by
            their predictions (Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602; Guo et al. 2017, arXiv:1706.04599).
        nll: negative log-likelihood of the true classes (log loss), nats. Multi-label: mean over the labels.
        brier: Brier score (Brier 1950): squared error of the scores. Classification: sum over the classes, 0..2. Multi-label: mean over the
            labels, 0..1.
        bins: bins with at least one prediction, in ascending order.
    """

    n: int
    ece: float
    nll: float
    brier: float
    bins: tuple[ReliabilityBin, ...]


class Rejection(StrictModel):
    """Rejection of unknown images: those with a highest score below a threshold (selective classification; Chow 1970,
    doi:10.1109/TIT.1970.1054406).

    Attributes:
        below: threshold (``DecisionRule.reject_below``).
        coverage: ratio of images that get a label, with its Wilson interval.
        precision: ratio of these images with the correct label, with its Wilson interval.
    """

    below: float
    coverage: Proportion
    precision: Proportion


class Evaluation(StrictModel):
    """Metrics of a model on labeled images.

    Attributes:
        accuracy: ratio of correct predictions. Classification: the top class is correct, also of unknown images. Multi-label: all labels
            are correct. Regression: the number is within the tolerance. Ordinal: the nearest level is correct.
        macro_f1: mean F1 over the classes (labels, levels) with images; 0 for regression.
        classes: metrics of each class (label, level), in order; empty for regression.
        confusion: confusion matrix: ``confusion[i][j]`` images of class (level) ``i`` were predicted as ``j``. Empty for multi-label and
            regression.
        multi_label: metrics of multi-label classification; none for other tasks.
        regression: metrics of regression and ordinal predictions; none for other tasks.
        reliability: calibration of the scores; none for regression and ordinal tasks, and in runs of earlier versions.
        rejection: coverage and precision of a classification with ``DecisionRule.reject_below``; none without it.
        anomaly: metrics of anomaly detection; none for other tasks.
    """

    accuracy: Proportion
    macro_f1: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    multi_label: MultiLabelFigures | None = None
    regression: RegressionFigures | None = None
    reliability: Reliability | None = None
    rejection: Rejection | None = None
    anomaly: AnomalyFigures | None = None

    def problem(self, task: Task, outputs: int) -> str | None:
        """Return the reason why the metrics are invalid for ``task`` and a network with ``outputs`` outputs, or none."""
        labels, sizes = self.multi_label, {len(self.confusion), *map(len, self.confusion)}
        if (labels is not None) != (task == "multi-label") or (self.regression is not None) != (task in ("regression", "ordinal")):
            return f"the metrics are not those of the task {task}"
        if (self.anomaly is not None) != (task == "anomaly"):
            return f"the metrics are not those of the task {task}"
        if task in ("classification", "multi-label", "anomaly") and len(self.classes) != outputs:
            return f"there are metrics of {len(self.classes)} classes, but {outputs} labels"
        if labels and {len(labels.average_precision), len(labels.thresholds)} != {outputs}:
            return f"there is not one average precision and one threshold for each of {outputs} labels"
        if sizes not in ({0}, {len(self.classes)}):
            return "the size of the confusion matrix is not the number of classes"
        return None

    @property
    def score(self) -> Proportion:
        """Task metric, which the accuracy gate limits: accuracy, mean average precision, R², or AUROC (without anomalies: accuracy)."""
        if self.anomaly is not None and self.anomaly.auroc is not None:
            return self.anomaly.auroc
        if self.multi_label is not None:
            return self.multi_label.mean_average_precision
        if self.regression is not None and self.regression.kappa is None:
            return self.regression.r2
        return self.accuracy


class ClassForgetting(StrictModel):
    """Forgetting of a class of the previous task.

    Attributes:
        label: name of the class.
        n: number of test images of the class.
        before: accuracy of the parent run, 0..1.
        after: accuracy of the new network, 0..1.
        low, high: limits of the 95 % interval of the accuracy drop (paired; Agresti and Min 2005).
    """

    label: str
    n: int
    before: float
    after: float
    low: float
    high: float


class Forgetting(StrictModel):
    """Forgetting of the previous task, on test images of the parent run that neither network used for training or selection.

    Attributes:
        parent: name of the parent run.
        through: output of the new network that predicts the previous classes. ``own``: its own head. ``previous head``: the parent's head.
            ``previous column``: the parent network, which is a column of the new network. ``probe``: a linear probe on the features of
            each network (`edgetl diagnose --source`).
        images: number of test images.
        before: accuracy of the parent run, 0..1.
        after: accuracy of the new network, 0..1.
        drop: accuracy drop; negative if the accuracy increased.
        low, high: limits of the paired 95 % interval of ``drop``.
        classes: forgetting of each class.
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
        """Return the classes with a significant accuracy drop (the interval is above 0), in descending order."""
        sure = [item for item in self.classes if item.low > 0]
        return tuple(sorted(sure, key=lambda item: item.after - item.before))


def images_that_may_change(n: int, max_drop: float) -> int:
    """Return the number of ``n`` validation images that a file may lose on balance without exceeding ``max_drop``."""
    return math.floor(n * max_drop + 1e-9)


def wilson(successes: int, n: int) -> Proportion:
    """Return the ratio ``successes / n`` with its 95 % interval (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if n == 0:
        return Proportion(value=0.0, n=0, low=0.0, high=1.0)
    z = 1.959964
    share = successes / n
    center = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Proportion(value=share, n=n, low=max(0.0, (center - spread) / scale), high=min(1.0, (center + spread) / scale))
