"""Climb the quantization ladder until the gate holds, and keep the record of every step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.manifest import Attempt, Sensitivity
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import Task
from edgetl.data.loading import PixelSet
from edgetl.errors import ExportError
from edgetl.export.gate.agreement import Logits, Verdict, answers
from edgetl.export.quantize.attempts import FloatHead, Probe, Quantizer, Step
from edgetl.export.quantize.sensitivity import rank_operations

# Strength of the pull towards the trained head, relative to the mean variance of a feature.
REFIT_PENALTY = 1.0


@dataclass(frozen=True)
class RefitData:
    """What a head is fitted on: training images, and the trained model's logits ``[n, classes]`` for them."""

    images: PixelSet
    trained: NDArray[np.float32]
    head: FloatHead


@dataclass(frozen=True)
class Ground:
    """What a climb needs besides the quantizer and the steps.

    Attributes:
        open_files: loads files into the engine.
        judge: the gate.
        refit: what steps that fit the head again need; called only for those.
        probe: images that single operations are measured on; called only where that is asked.
        task: of the network.
        explain: measure the operations of the last file even if the gate passed it.
        progress: told after each step.
    """

    open_files: Callable[[list[Path]], Logits]
    judge: Callable[[Logits], Verdict]
    refit: Callable[[], RefitData]
    probe: Callable[[], Probe]
    task: Task = "classification"
    explain: bool = False
    progress: Progress = silent


@dataclass(frozen=True)
class Climbed:
    """The last step's files and verdict, the record of all steps, and the operations' sensitivities where they were measured."""

    files: list[Path]
    verdict: Verdict
    attempts: tuple[Attempt, ...]
    sensitivities: tuple[Sensitivity, ...] = ()


def climb(quantizer: Quantizer, steps: Sequence[Step], folder: Path, ground: Ground) -> Climbed:
    """Quantize step by step until the gate passes a file or no step is left.

    Args:
        quantizer: of one engine.
        steps: cheapest first.
        folder: receives the files; a later step overwrites an earlier one's.
        ground: the gate and all else.
    """
    attempts: list[Attempt] = []
    files: list[Path] = []
    verdict: Verdict | None = None
    ranked: tuple[Sensitivity, ...] = ()
    failure: ExportError | None = None
    for number, step in enumerate(steps, start=1):
        if step.sensitive and not ranked:
            ranked = _ranked(quantizer, ground)
        spared = tuple(item.operation for item in ranked[: step.sensitive] if item.loss > 0)
        if step.sensitive and len(spared) < step.sensitive // 2:
            continue  # fewer operations cost anything than the step before has spared
        ground.progress(f"quantizing: {step.method}", number - 1, len(steps))
        try:
            made = _write(quantizer, step, folder, spared, ground)
        except ExportError as error:
            failure = error  # another step may do what this one cannot
            attempts.append(Attempt(method=step.method, accuracy=None, drop=None, confident_top1=None, passed=False, reason=str(error)))
            continue
        files, verdict = made, ground.judge(ground.open_files(made))
        attempts.append(_record(step, verdict))
        if not verdict.reason:
            break
    if verdict is None:
        raise failure or AssertionError("the ladder has no step")
    if ground.explain and not ranked:
        ranked = _ranked(quantizer, ground)
    return Climbed(files, verdict, tuple(attempts), ranked)


def _write(quantizer: Quantizer, step: Step, folder: Path, spared: tuple[str, ...], ground: Ground) -> list[Path]:
    files = quantizer.quantize(step, folder, spared)
    if step.refit:
        trunk = ground.open_files(quantizer.write_trunk(folder))
        files = quantizer.replace_head(refit_head(trunk, ground.refit()), folder)
    return files


def _ranked(quantizer: Quantizer, ground: Ground) -> tuple[Sensitivity, ...]:
    with tempfile.TemporaryDirectory() as work:
        return rank_operations(quantizer, ground.probe(), ground.task, Path(work), open_files=ground.open_files, progress=ground.progress)


def _record(step: Step, verdict: Verdict) -> Attempt:
    return Attempt(
        method=step.method,
        accuracy=verdict.validation.value,
        drop=verdict.drop,
        confident_top1=verdict.agreement.confident_top1,
        passed=not verdict.reason,
        accuracy_drop=verdict.accuracy_drop,
        unlabeled=verdict.unlabeled,
        reason=verdict.reason,
    )


def refit_head(trunk: Logits, data: RefitData) -> FloatHead:
    """The head that turns the quantized trunk's features into the trained model's logits, by ridge regression around the old head.

    Fitting the trained model's logits rather than the labels keeps its answers, right and wrong, and does not depend on how the head
    was trained; the pull to the old head makes the correction small where the images say little.

    Args:
        trunk: images ``[batch, 3, H, W]`` → quantized features ``[batch, width]``.
        data: training images with the trained model's logits.
    """
    features = answers(trunk, data.images).astype(np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    residual = data.trained - (features @ data.head.weight.T + data.head.bias)
    offset = residual.mean(axis=0)
    gram = centred.T @ centred / len(features)
    gram[np.diag_indices_from(gram)] += REFIT_PENALTY * max(float((centred**2).mean()), 1e-12)
    change = np.linalg.solve(gram, centred.T @ (residual - offset) / len(features)).T
    weight = data.head.weight + change
    bias = data.head.bias + offset - change @ mean
    return FloatHead(weight.astype(np.float32), bias.astype(np.float32))
