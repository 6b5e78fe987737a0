"""The gate: does an exported file, loaded in the device's engine, answer like the trained model?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.manifest import Agreement
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Proportion, wilson
from edgetl.core.scoring import softmax
from edgetl.data.folder import Sample
from edgetl.data.loading import batches, labels_of
from edgetl.export.config import ExportConfig

# Two float32 engines differ by about 1e-6 of the largest logit; a wrong operator or preprocessing by far more.
MAX_FP32_DIFFERENCE = 1e-4
CONFIDENT_SCORE = 0.6
STRICT_BATCHES = (1, 2, 5)

Logits = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class GateSet:
    """The validation images that decide, and the trained model's answers: logits float32 ``[n, classes]``."""

    samples: Sequence[Sample]
    spec: PreprocessSpec
    trained: NDArray[np.float32]

    @property
    def accuracy(self) -> Proportion:
        """The trained model's accuracy."""
        return accuracy(self.trained, self.samples)


@dataclass(frozen=True)
class Verdict:
    """What one file measured, and why it failed; an empty ``reason`` is a pass."""

    agreement: Agreement
    validation: Proportion
    drop: float
    reason: str


def trained_logits(
    model: nn.Module, samples: Sequence[Sample], spec: PreprocessSpec, *, progress: Progress = silent
) -> NDArray[np.float32]:
    """The trained model's logits ``[n, classes]`` of ``samples``, by torch on the CPU."""

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            result: NDArray[np.float32] = model(torch.from_numpy(batch)).numpy()
        return result

    return answers(run, samples, spec, stage="the trained model's answers", progress=progress)


def answers(
    logits: Logits, samples: Sequence[Sample], spec: PreprocessSpec, *, stage: str = "comparing", progress: Progress = silent
) -> NDArray[np.float32]:
    """A network's outputs ``[n, …]`` for ``samples``, in their order."""
    rows: list[NDArray[np.float32]] = []
    for batch in batches(samples, spec):
        rows.append(logits(batch))
        progress(stage, sum(map(len, rows)), len(samples))
    return np.concatenate(rows)


def compare(trained: NDArray[np.float32], exported: NDArray[np.float32]) -> Agreement:
    """How two models' logits ``[n, classes]`` of the same images agree."""
    same = trained.argmax(axis=1) == exported.argmax(axis=1)
    confident = softmax(trained).max(axis=1) >= CONFIDENT_SCORE
    difference = np.abs(trained - exported).max() / max(float(np.abs(trained).max()), 1e-12)
    return Agreement(
        n=len(trained),
        max_relative=float(difference) if np.isfinite(difference) else 1e9,
        top1=float(same.mean()),
        confident_n=int(confident.sum()),
        confident_top1=float(same[confident].mean()) if confident.any() else 1.0,
    )


def accuracy(logits: NDArray[np.float32], samples: Sequence[Sample]) -> Proportion:
    """Share of ``samples`` whose top class is the label."""
    return wilson(int((logits.argmax(axis=1) == labels_of(samples)).sum()), len(samples))


def judge(logits: Logits, gate: GateSet, config: ExportConfig, *, exact: bool, progress: Progress = silent) -> Verdict:
    """Run a loaded file on the gate's images and decide.

    Args:
        logits: the file, loaded in the engine that the device uses.
        gate: images and the trained model's answers.
        config: the limits.
        exact: true for fp32, which must give the same numbers at several batch sizes; false for reduced precision, which must keep
            accuracy and agree where the trained model is confident.
        progress: told after each batch.
    """
    exported = answers(logits, gate.samples, gate.spec, progress=progress)
    agreement, validation = compare(gate.trained, exported), accuracy(exported, gate.samples)
    drop = gate.accuracy.value - validation.value
    if exact:
        worst = max(agreement.max_relative, _strict_difference(logits, gate))
        agreement = agreement.model_copy(update={"max_relative": worst})
        wrong = worst > MAX_FP32_DIFFERENCE
        reason = f"its logits differ by {worst:.1e} of the largest (limit {MAX_FP32_DIFFERENCE:g})" if wrong else ""
    elif not drop <= config.max_drop + 1e-9:
        reason = f"accuracy falls by {drop:.4f}, from {gate.accuracy.value:.4f} to {validation.value:.4f} (limit {config.max_drop:g})"
    elif agreement.confident_top1 < config.min_agreement:
        reason = f"it agrees on {agreement.confident_top1:.3f} of the confident images (limit {config.min_agreement:g})"
    else:
        reason = ""
    return Verdict(agreement, validation, drop, reason)


def _strict_difference(logits: Logits, gate: GateSet) -> float:
    """The largest relative difference at each batch size of ``STRICT_BATCHES``: a batch baked into the graph shows here."""
    worst = 0.0
    images = next(batches(gate.samples[: max(STRICT_BATCHES)], gate.spec, batch_size=max(STRICT_BATCHES)))
    for size in STRICT_BATCHES:
        part = images[:size]
        worst = max(worst, compare(gate.trained[: len(part)], logits(part)).max_relative)
    return worst
