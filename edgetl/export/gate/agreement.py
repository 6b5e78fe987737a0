"""Accuracy gate: compare an exported file, loaded in the device's engine, with the trained model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.metrics import evaluate, images_for_bound, paired_drop
from edgetl.core.output_decoding import anomaly_outputs, is_anomaly, nearest_levels, present_labels, scores_of
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.core.results import (
    AccuracyDrop,
    Agreement,
    Evaluation,
    Proportion,
    UnlabeledAgreement,
    images_that_may_change,
    validation_images,
)
from edgetl.core.tasks import SCORE_NAMES, OutputDecoding
from edgetl.data.folder import Sample
from edgetl.data.loading import PixelSet, truth_of
from edgetl.export.config import ExportConfig
from edgetl.export.gate.anomalies import ConfettiSet, correlation_reason, score_correlation
from edgetl.export.gate.degradation import MAX_RECALL_DROP, collapse_reason, expected_drop_reason, worst_class
from edgetl.export.gate.unlabeled import AgreementSet, changed_too_much, compare_unlabeled, expected_drops

# Two float32 engines differ by about 1e-6 of the largest logit. A wrong operator or preprocessing causes a much larger difference.
MAX_FP32_DIFFERENCE = 1e-4
CONFIDENT_SCORE = 0.6
# Correct int8 files of six networks reach at least 0.994. A file with weight zero points off by one reaches 0.969 at the same accuracy.
MIN_COSINE = 0.98
STRICT_BATCHES = (1, 2, 5)
# Part of the reason of a file that only the bound of the drop rejects.
STRICT_LIMIT = "--strict"

# Images on which the gate decides. Target images are those of an adapted run.
GateKind: TypeAlias = Literal["validation", "labeled target", "unlabeled target"]
Logits = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class GateSet:
    """Images of the accuracy gate, with the trained model's outputs.

    Attributes:
        images: validation images; in a cross-validated run the training images. Unlabeled target images have the class that the trained
            model predicts as their label, so that the accuracy on them is the agreement with it.
        trained: the trained model's outputs for them, float32 ``[n, labels]``, plus ``offset``.
        decoding: decoding of the outputs.
        more: returns unlabeled images; called for files of reduced precision only.
        confetti: anomaly detection: returns copies with confetti noise; called for files of reduced precision only.
        offset: float32 ``[n, labels]``, added to all outputs for ``images``. In a cross-validated run, the out-of-fold outputs minus the
            trained model's outputs, otherwise 0. The trained model's own outputs for its training images have too few errors and too
            large margins. With the offset, a file is evaluated by how its deviations change the out-of-fold predictions.
        folds: number of folds of a cross-validated run, otherwise 0.
        kind: kind of the images.
    """

    images: PixelSet
    trained: NDArray[np.float32]
    decoding: OutputDecoding
    more: Callable[[], AgreementSet] | None = None
    confetti: Callable[[], ConfettiSet] | None = None
    offset: NDArray[np.float32] | float = 0.0
    folds: int = 0
    kind: GateKind = "validation"

    @property
    def labeled(self) -> bool:
        """True if the labels of the images are known."""
        return self.kind != "unlabeled target"

    @property
    def name(self) -> str:
        """Name of the images, such as ``validation images``."""
        return validation_images(self.folds) if self.kind == "validation" else f"{self.kind} images"

    @property
    def samples(self) -> Sequence[Sample]:
        """Samples of the images."""
        return self.images.samples

    @property
    def spec(self) -> PreprocessSpec:
        """Preprocessing of the images."""
        return self.images.spec

    @cached_property
    def evaluation(self) -> Evaluation:
        """Metrics of the trained model."""
        return self.measure(self.trained)

    def outputs_of(self, logits: Logits, *, progress: Progress = silent) -> NDArray[np.float32]:
        """Return the outputs of a file for the images, float32 ``[n, labels]``, plus ``offset``."""
        return outputs_of(logits, self.images, progress=progress) + self.offset

    def measure(self, outputs: NDArray[np.float32]) -> Evaluation:
        """Return the metrics of other outputs for the same images."""
        return evaluate(self.decoding, truth_of(self.samples), outputs)

    def drop_of(self, outputs: NDArray[np.float32]) -> float:
        """Return the accuracy drop of other outputs for the same images, 0..1. Without labels: the expected drop."""
        if self.labeled:
            return accuracy_drop(self.evaluation, self.measure(outputs))
        return float(expected_drops(self.trained, outputs, self.decoding).mean())


@dataclass(frozen=True)
class GateResult:
    """Gate result of one file.

    Attributes:
        agreement: agreement with the trained model.
        validation: the task's score (``Evaluation.score``) on the validation images.
        drop: accuracy drop, 0..1.
        accuracy_drop: classification: the drop with its confidence interval.
        reason: reason of a rejection; empty if the file passed.
        unlabeled: agreement on unlabeled images, for a file of reduced precision that passed on the labeled ones.
    """

    agreement: Agreement
    validation: Proportion
    drop: float
    accuracy_drop: AccuracyDrop | None
    reason: str
    unlabeled: UnlabeledAgreement | None = None


def trained_logits(model: nn.Module, images: PixelSet, *, progress: Progress = silent) -> NDArray[np.float32]:
    """Return the trained model's logits for ``images``, float32 ``[n, classes]``, computed by torch on the CPU."""

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            result: NDArray[np.float32] = model(torch.from_numpy(batch)).numpy()
        return result

    return outputs_of(run, images, stage="running the trained model", progress=progress)


def outputs_of(logits: Logits, images: PixelSet, *, stage: str = "comparing outputs", progress: Progress = silent) -> NDArray[np.float32]:
    """Return the outputs of a network for ``images``, float32 ``[n, …]``, in the order of the images."""
    rows: list[NDArray[np.float32]] = []
    for batch in images.batches():
        rows.append(logits(batch))
        progress(stage, sum(map(len, rows)), len(images))
    return np.concatenate(rows)


def compare(trained: NDArray[np.float32], exported: NDArray[np.float32], decoding: OutputDecoding | None = None) -> Agreement:
    """Return the agreement of two models' outputs ``[n, labels]`` for the same images. Without ``decoding`` they are logits of classes."""
    same, confident = _same_predictions(trained, exported, decoding or OutputDecoding())
    difference = np.abs(trained - exported).max() / max(float(np.abs(trained).max()), 1e-12)
    return Agreement(
        n=len(trained),
        max_relative_error=float(difference) if np.isfinite(difference) else 1e9,
        top1_agreement=float(same.mean()),
        confident_n=int(confident.sum()),
        confident_agreement=float(same[confident].mean()) if confident.any() else 1.0,
        median_cosine=median_cosine(trained, exported),
    )


def median_cosine(trained: NDArray[np.float32], exported: NDArray[np.float32]) -> float | None:
    """Return the median over the images of the cosine similarity between two models' outputs ``[n, labels]``.

    The trained model's mean output is subtracted from both. Every image shares this mean, and it would hide the errors of a wrong file.
    Outputs that are not finite count as the mean. Returns None for one image or one output.
    """
    if len(trained) < 2 or trained.shape[1] < 2:
        return None
    mean = trained.mean(axis=0, dtype=np.float64)
    one, other = trained - mean, np.nan_to_num(exported - mean, posinf=0.0, neginf=0.0)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(np.median((one * other).sum(axis=1) / np.maximum(lengths, 1e-12)))


def _same_predictions(
    trained: NDArray[np.float32], exported: NDArray[np.float32], decoding: OutputDecoding
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return two masks: equal predictions, and confident predictions of the trained model. Elements are images, or decisions on labels."""
    match decoding.task:
        case "classification":
            return trained.argmax(axis=1) == exported.argmax(axis=1), scores_of(decoding, trained).max(axis=1) >= CONFIDENT_SCORE
        case "anomaly":
            # As for the label of a multi-label model.
            limit = decoding.decision_rule.thresholds[0]
            distance = np.abs(anomaly_outputs(trained) - math.log(limit / (1 - limit)))
            same = is_anomaly(decoding, scores_of(decoding, trained)) == is_anomaly(decoding, scores_of(decoding, exported))
            return same, distance >= math.log(CONFIDENT_SCORE / (1 - CONFIDENT_SCORE))
        case "multi-label":
            # For a threshold of 0.5 a confident score is 0.6 or more. Other thresholds use the same distance in log-odds.
            limits = np.clip(np.array(decoding.decision_rule.thresholds), 1e-7, 1 - 1e-7)
            distance = np.abs(trained / decoding.decision_rule.temperature - np.log(limits / (1 - limits)))
            same = present_labels(decoding, scores_of(decoding, trained)) == present_labels(decoding, scores_of(decoding, exported))
            return same, distance >= math.log(CONFIDENT_SCORE / (1 - CONFIDENT_SCORE))
        case "regression":
            return np.abs(trained - exported)[:, 0] <= decoding.decision_rule.tolerance, np.ones(len(trained), np.bool_)
        case "ordinal":
            values = trained[:, 0].astype(np.float64)
            same = nearest_levels(decoding, values) == nearest_levels(decoding, exported[:, 0])
            return same, np.abs(values - np.floor(values) - 0.5) >= CONFIDENT_SCORE - 0.5
        case _:
            assert_never(decoding.task)


def accuracy_drop(trained: Evaluation, exported: Evaluation) -> float:
    """Return the accuracy drop of a file, 0..1: the drop of the task's score.

    For a multi-label model, the drop of the ratio of correct decisions is returned if it is larger. A shift of all scores changes the
    decisions and leaves the average precision unchanged.
    """
    _, before, after = _largest_drop("score", trained, exported)
    return before - after


def _largest_drop(score_name: str, trained: Evaluation, exported: Evaluation) -> tuple[str, float, float]:
    """Return the metric that drops the most: its name, its value for the trained model and its value for the file."""
    score = score_name, trained.score.value, exported.score.value
    if trained.multi_label is None or exported.multi_label is None:
        return score
    decisions = "ratio of correct decisions", trained.multi_label.label_accuracy, exported.multi_label.label_accuracy
    return max(score, decisions, key=lambda metric: metric[1] - metric[2])


def evaluate_file(logits: Logits, gate: GateSet, config: ExportConfig, *, exact: bool, progress: Progress = silent) -> GateResult:
    """Evaluate a loaded file with the accuracy gate.

    Args:
        logits: the file, loaded in the engine that the device uses.
        gate: validation images and the trained model's outputs.
        config: limits of the gate.
        exact: true for fp32: the logits must equal the trained model's at several batch sizes. False for reduced precision: the accuracy
            and the confident predictions must be kept.
        progress: called after each batch.
    """
    exported = gate.outputs_of(logits, progress=progress)
    agreement, measured = compare(gate.trained, exported, gate.decoding), gate.measure(exported)
    drop, interval = gate.drop_of(exported), _paired(gate, exported)
    if exact:
        worst = max(agreement.max_relative_error, _strict_difference(logits, gate))
        agreement = agreement.model_copy(update={"max_relative_error": worst})
        wrong = worst > MAX_FP32_DIFFERENCE
        reason = f"logits differ from the trained model's by {worst:.1e} of the largest (limit {MAX_FP32_DIFFERENCE:g})" if wrong else ""
        return GateResult(agreement, measured.score, drop, interval, reason)
    reason = drop_reason(gate, exported, config) or _disagreement(agreement, measured, config)
    if gate.confetti is not None:
        correlations = _score_correlations(logits, gate, exported, gate.confetti(), progress)
        agreement = agreement.model_copy(update={"score_correlation": min(correlations)})
        reason = reason or correlation_reason(*correlations)
    if reason or gate.more is None:
        return GateResult(agreement, measured.score, drop, interval, reason)
    found = _agreement_without_labels(logits, gate, exported, gate.more(), progress)
    return GateResult(agreement, measured.score, drop, interval, changed_too_much(found, len(gate.samples), config.max_drop), found)


def _score_correlations(
    logits: Logits, gate: GateSet, exported: NDArray[np.float32], confetti: ConfettiSet, progress: Progress
) -> tuple[float, float]:
    """Return the correlation of the scores of normal images, and of copies with confetti; ``exported`` are the outputs for the gate."""
    normal = truth_of(gate.samples) == 0
    outputs = outputs_of(logits, confetti.images, progress=progress)
    return score_correlation(gate.trained[normal], exported[normal]), score_correlation(confetti.trained, outputs)


def _agreement_without_labels(
    logits: Logits, gate: GateSet, exported: NDArray[np.float32], more: AgreementSet, progress: Progress
) -> UnlabeledAgreement:
    """Return the agreement on the gate's images and on ``more``; ``exported`` are the outputs for the gate's images."""
    trained = np.concatenate([gate.trained, more.trained])
    added = np.concatenate([gate.trained[:0], *(outputs_of(logits, part, progress=progress) for part in more.images)])
    outputs = np.concatenate([exported, added + more.offset])
    same, _ = _same_predictions(trained, outputs, gate.decoding)
    crops = sum(len(part) for part in more.images if part.crops)
    given = len(more.trained) - crops
    counts = {"crops": crops, "unlabeled": given}
    if gate.kind != "validation":
        counts = {"crops": crops, "target": given if gate.labeled else given + len(gate.samples)}
    return compare_unlabeled(trained, outputs, same, gate.decoding).model_copy(update=counts)


def _paired(gate: GateSet, exported: NDArray[np.float32]) -> AccuracyDrop | None:
    if gate.decoding.task != "classification" or not gate.labeled:
        return None
    labels = truth_of(gate.samples)
    return paired_drop(gate.trained.argmax(axis=1) == labels, exported.argmax(axis=1) == labels)


def drop_reason(gate: GateSet, exported: NDArray[np.float32], config: ExportConfig) -> str:
    """Return the reason why the metrics of a file's outputs drop too much; empty if they do not."""
    if not gate.labeled:
        drops = expected_drops(gate.trained, exported, gate.decoding)
        found = expected_drop_reason(drops, gate.trained.argmax(axis=1), gate.decoding.labels, config.max_drop)
        return found or collapse_reason(gate.trained, exported)
    measured = gate.measure(exported)
    metric, before, after = _largest_drop(SCORE_NAMES[gate.decoding.task], gate.evaluation, measured)
    drop, interval = before - after, _paired(gate, exported)
    if not drop <= config.max_drop + 1e-9:
        return (
            f"{metric} drops by {drop:.4f}, from {before:.4f} to {after:.4f} "
            f"(limit --max-drop {config.max_drop:g}, {drop - config.max_drop:.4f} over{_in_images(interval, config)})"
        )
    if interval is None:
        return ""
    if config.strict and interval.bound > config.max_drop:
        return (
            f"accuracy drops by {drop:.4f}, with a one-sided 95 % bound of {interval.bound:.4f} on {interval.n} images (limit --max-drop "
            f"{config.max_drop:g} with --strict, {interval.bound - config.max_drop:.4f} over). "
            f"{_enough_images(interval, config, gate.name)}"
        )
    label, recall = worst_class(gate.evaluation, measured)
    limit = max(MAX_RECALL_DROP, config.max_drop)  # a larger accepted drop of the accuracy also applies to each class
    if recall > limit + 1e-9:
        return f"recall of class {label} drops by {recall:.4f} (limit {limit:g}). A larger --max-drop raises this limit"
    return collapse_reason(gate.trained, exported)


def _enough_images(drop: AccuracyDrop, config: ExportConfig, images: str) -> str:
    """Return a sentence with the number of ``images`` whose bound would be within the limit."""
    needed = images_for_bound(config.max_drop, drop.lost / drop.n, drop.gained / drop.n)
    if needed is None:
        return f"More {images} do not help, because the drop itself is at the limit"
    return f"If the same ratio of predictions changes, {needed} {images} are enough"


def too_few_for_strict(n: int, config: ExportConfig, *, images: str = "validation images") -> str:
    """Return the reason why ``strict`` rejects every classifier of reduced precision on ``n`` ``images``; empty if it does not."""
    if not config.strict:
        return ""
    needed = images_for_bound(config.max_drop)
    if needed is None:
        return f"--strict rejects every file with --max-drop {config.max_drop:g}, because the bound of a drop is above 0"
    if n >= needed:
        return ""
    same = np.zeros(n, np.bool_)
    return (
        f"--strict needs at least {needed} {images} for --max-drop {config.max_drop:g}, and there are {n}. With {n} "
        f"images, the one-sided 95 % bound of the drop is {paired_drop(same, same).bound:.4f}, even if no prediction changes"
    )


def _in_images(drop: AccuracyDrop | None, config: ExportConfig) -> str:
    """Return the drop and its limit in numbers of images, with the interval of the drop."""
    if drop is None:
        return ""
    allowed = images_that_may_change(drop.n, config.max_drop)
    return f"; {round(drop.value * drop.n)} of {drop.n} images, {allowed} allowed; 95 % interval {drop.low:+.4f} to {drop.high:+.4f}"


def _disagreement(agreement: Agreement, measured: Evaluation, config: ExportConfig) -> str:
    if agreement.median_cosine is not None and agreement.median_cosine < MIN_COSINE:
        return (
            f"median cosine similarity to the trained model's outputs is {agreement.median_cosine:.3f} (limit {MIN_COSINE:g}). "
            f"Use a higher precision"
        )
    if agreement.confident_agreement >= config.min_agreement:
        return ""
    unit = "decisions" if measured.multi_label else "images"
    return (
        f"agreement with the trained model is {agreement.confident_agreement:.3f} of the confident {unit} (limit {config.min_agreement:g})"
    )


def _strict_difference(logits: Logits, gate: GateSet) -> float:
    """Return the largest relative difference at the batch sizes ``STRICT_BATCHES``. It reveals a batch size fixed in the graph."""
    worst = 0.0
    images = next(gate.images.batches(max(STRICT_BATCHES)))
    trained = (gate.trained - gate.offset)[: len(images)]
    for size in STRICT_BATCHES:
        part = images[:size]
        worst = max(worst, compare(trained[: len(part)], logits(part)).max_relative_error)
    return worst
