"""Accuracy gate: an exported file, loaded in the device's engine, must agree with the trained model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.manifest import Agreement, UnlabeledAgreement
from edgetl.core.metrics import evaluate, paired_drop
from edgetl.core.output_decoding import nearest_levels, present_labels, sigmoid, softmax
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.core.results import AccuracyDrop, Evaluation, Proportion, images_that_may_change
from edgetl.core.tasks import SCORE_NAMES, OutputDecoding
from edgetl.data.folder import Sample
from edgetl.data.loading import PixelSet, truth_of
from edgetl.export.config import ExportConfig
from edgetl.export.gate.degradation import MAX_RECALL_DROP, MIN_ENTROPY_SHARE, prediction_entropy, worst_class
from edgetl.export.gate.unlabeled import AgreementSet, changed_too_much, compare_unlabeled

# Two float32 engines differ by about 1e-6 of the largest logit; a wrong operator or preprocessing by far more.
MAX_FP32_DIFFERENCE = 1e-4
CONFIDENT_SCORE = 0.6
# Six networks' good int8 files have 0.994 and more; one with a weight's zero point off by one has 0.969 and the same accuracy.
MIN_COSINE = 0.98
STRICT_BATCHES = (1, 2, 5)

Logits = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class GateSet:
    """Validation images that decide, the trained model's outputs for them, float32 ``[n, labels]``, and their decoding.

    ``more`` returns further, unlabeled images; it is called for files of reduced precision only.
    """

    images: PixelSet
    trained: NDArray[np.float32]
    decoding: OutputDecoding
    more: Callable[[], AgreementSet] | None = None

    @property
    def samples(self) -> Sequence[Sample]:
        """The images' samples."""
        return self.images.samples

    @property
    def spec(self) -> PreprocessSpec:
        """Preprocessing of the images."""
        return self.images.spec

    @cached_property
    def evaluation(self) -> Evaluation:
        """The trained model's figures."""
        return self.measure(self.trained)

    def measure(self, outputs: NDArray[np.float32]) -> Evaluation:
        """The figures of other outputs for the same images."""
        return evaluate(self.decoding, truth_of(self.samples), outputs)


@dataclass(frozen=True)
class GateResult:
    """Gate result of one file: the task's figure, and the reason of a failure; an empty ``reason`` is a pass.

    ``accuracy_drop`` (of classes) is the drop with its interval, ``unlabeled`` the agreement on unlabeled images,
    where the labeled ones passed a file of reduced precision.
    """

    agreement: Agreement
    validation: Proportion
    drop: float
    accuracy_drop: AccuracyDrop | None
    reason: str
    unlabeled: UnlabeledAgreement | None = None


def trained_logits(model: nn.Module, images: PixelSet, *, progress: Progress = silent) -> NDArray[np.float32]:
    """The trained model's logits ``[n, classes]`` of ``images``, by torch on the CPU."""

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            result: NDArray[np.float32] = model(torch.from_numpy(batch)).numpy()
        return result

    return outputs_of(run, images, stage="the trained model's outputs", progress=progress)


def outputs_of(logits: Logits, images: PixelSet, *, stage: str = "comparing", progress: Progress = silent) -> NDArray[np.float32]:
    """A network's outputs ``[n, …]`` for ``images``, in their order."""
    rows: list[NDArray[np.float32]] = []
    for batch in images.batches():
        rows.append(logits(batch))
        progress(stage, sum(map(len, rows)), len(images))
    return np.concatenate(rows)


def compare(trained: NDArray[np.float32], exported: NDArray[np.float32], decoding: OutputDecoding | None = None) -> Agreement:
    """Agreement of two models' outputs ``[n, labels]`` for the same images; without ``decoding`` they are logits of classes."""
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
    """The median over the images of the cosine between two models' outputs ``[n, labels]``, each less the trained model's mean output.

    The mean is what every image gets: beside it a wrong file looks right. None for one image or one output.
    """
    if len(trained) < 2 or trained.shape[1] < 2:
        return None
    mean = trained.mean(axis=0, dtype=np.float64)
    one, other = trained - mean, np.nan_to_num(exported - mean)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(np.median((one * other).sum(axis=1) / np.maximum(lengths, 1e-12)))


def _same_predictions(
    trained: NDArray[np.float32], exported: NDArray[np.float32], decoding: OutputDecoding
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of equal predictions, and of those of which the trained model is confident: of images, or of decisions on labels."""
    match decoding.task:
        case "classification":
            return trained.argmax(axis=1) == exported.argmax(axis=1), softmax(trained).max(axis=1) >= CONFIDENT_SCORE
        case "multi-label":
            # A score of 0.6 where the threshold is a half; as far in log-odds from every other threshold.
            limits = np.clip(np.array(decoding.decision_rule.thresholds), 1e-7, 1 - 1e-7)
            distance = np.abs(trained - np.log(limits / (1 - limits)))
            same = present_labels(decoding, sigmoid(trained)) == present_labels(decoding, sigmoid(exported))
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
    """Accuracy drop of a file, 0..1: of the task's figure; of a multi-label model also of the ratio of right decisions, if that is larger.

    A shift of all scores leaves average precision as it was and changes the decisions.
    """
    drop = trained.score.value - exported.score.value
    if trained.multi_label is not None and exported.multi_label is not None:
        return max(drop, trained.multi_label.label_accuracy - exported.multi_label.label_accuracy)
    return drop


def evaluate_file(logits: Logits, gate: GateSet, config: ExportConfig, *, exact: bool, progress: Progress = silent) -> GateResult:
    """Evaluate a loaded file on the gate's images.

    Args:
        logits: the file, loaded in the engine that the device uses.
        gate: images and the trained model's outputs.
        config: the limits.
        exact: true for fp32, which must give the same numbers at several batch sizes; false for reduced precision, which must keep
            accuracy and agree where the trained model is confident.
        progress: called after each batch.
    """
    exported = outputs_of(logits, gate.images, progress=progress)
    agreement, measured = compare(gate.trained, exported, gate.decoding), gate.measure(exported)
    drop, interval = accuracy_drop(gate.evaluation, measured), _paired(gate, exported)
    if exact:
        worst = max(agreement.max_relative_error, _strict_difference(logits, gate))
        agreement = agreement.model_copy(update={"max_relative_error": worst})
        wrong = worst > MAX_FP32_DIFFERENCE
        reason = f"its logits differ by {worst:.1e} of the largest (limit {MAX_FP32_DIFFERENCE:g})" if wrong else ""
        return GateResult(agreement, measured.score, drop, interval, reason)
    reason = drop_reason(gate, exported, config) or _disagreement(agreement, measured, config)
    if reason or gate.more is None:
        return GateResult(agreement, measured.score, drop, interval, reason)
    found = _agreement_without_labels(logits, gate, exported, gate.more(), progress)
    return GateResult(agreement, measured.score, drop, interval, changed_too_much(found, len(gate.samples), config.max_drop), found)


def _agreement_without_labels(
    logits: Logits, gate: GateSet, exported: NDArray[np.float32], more: AgreementSet, progress: Progress
) -> UnlabeledAgreement:
    """Agreement on the gate's images, whose outputs are ``exported``, and on ``more``."""
    trained = np.concatenate([gate.trained, more.trained])
    outputs = np.concatenate([exported, *(outputs_of(logits, part, progress=progress) for part in more.images)])
    same, _ = _same_predictions(trained, outputs, gate.decoding)
    return compare_unlabeled(trained, outputs, same, gate.decoding)


def _paired(gate: GateSet, exported: NDArray[np.float32]) -> AccuracyDrop | None:
    if gate.decoding.task != "classification":
        return None
    labels = truth_of(gate.samples)
    return paired_drop(gate.trained.argmax(axis=1) == labels, exported.argmax(axis=1) == labels)


def drop_reason(gate: GateSet, exported: NDArray[np.float32], config: ExportConfig) -> str:
    """Why the figures of a file's outputs are too far below the trained model's; empty where they are not."""
    measured = gate.measure(exported)
    drop, interval = accuracy_drop(gate.evaluation, measured), _paired(gate, exported)
    before, after = gate.evaluation.score.value, measured.score.value
    if not drop <= config.max_drop + 1e-9:
        decisions = " (or the share of right decisions)" if measured.multi_label else ""
        return (
            f"{SCORE_NAMES[gate.decoding.task]}{decisions} falls by {drop:.4f}, from {before:.4f} to {after:.4f} (limit {config.max_drop:g}"
            f"{_in_images(interval, config)})"
        )
    if interval is None:
        return ""
    if config.strict and interval.bound > config.max_drop:
        return (
            f"accuracy falls by {drop:.4f}, and on {interval.n} images by up to {interval.bound:.4f} cannot be excluded (--strict, limit "
            f"{config.max_drop:g}); more validation images narrow it"
        )
    label, recall = worst_class(gate.evaluation, measured)
    limit = max(MAX_RECALL_DROP, config.max_drop)  # who accepts more on the whole accepts it of a class
    if recall > limit + 1e-9:
        return f"the recall of class {label} falls by {recall:.4f} (limit {limit:g})"
    entropies = prediction_entropy(gate.trained), prediction_entropy(exported)
    if entropies[1] < MIN_ENTROPY_SHARE * entropies[0]:
        return f"it predicts one class for too many images: their entropy is {entropies[1]:.2f}, the trained model's {entropies[0]:.2f}"
    return ""


def _in_images(drop: AccuracyDrop | None, config: ExportConfig) -> str:
    """The drop and its limit as numbers of images, with the drop's interval."""
    if drop is None:
        return ""
    allowed = images_that_may_change(drop.n, config.max_drop)
    return f"; {round(drop.value * drop.n)} of {drop.n} images, {allowed} may change; 95 % interval {drop.low:+.4f} to {drop.high:+.4f}"


def _disagreement(agreement: Agreement, measured: Evaluation, config: ExportConfig) -> str:
    if agreement.median_cosine is not None and agreement.median_cosine < MIN_COSINE:
        return f"its outputs are turned away from the trained model's (median cosine {agreement.median_cosine:.3f}, limit {MIN_COSINE:g})"
    if agreement.confident_agreement >= config.min_agreement:
        return ""
    what = "decisions" if measured.multi_label else "images"
    return f"it agrees on {agreement.confident_agreement:.3f} of the confident {what} (limit {config.min_agreement:g})"


def _strict_difference(logits: Logits, gate: GateSet) -> float:
    """The largest relative difference at each batch size of ``STRICT_BATCHES``: a batch baked into the graph shows here."""
    worst = 0.0
    images = next(gate.images.batches(max(STRICT_BATCHES)))
    for size in STRICT_BATCHES:
        part = images[:size]
        worst = max(worst, compare(gate.trained[: len(part)], logits(part)).max_relative_error)
    return worst
