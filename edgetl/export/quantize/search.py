"""Quantization search: attempt settings until the accuracy gate passes a file, and keep the record of every attempt."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.manifest import Attempt, Sensitivity
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import Task
from edgetl.data.loading import PixelSet
from edgetl.errors import ExportError
from edgetl.export.gate.agreement import GateResult, Logits, outputs_of
from edgetl.export.quantize.attempts import FloatHead, Int8Settings, Probe, Quantizer
from edgetl.export.quantize.sensitivity import rank_operations

# Strength of the pull towards the trained head, relative to the mean variance of a feature.
REFIT_PENALTY = 1.0


@dataclass(frozen=True)
class RefitData:
    """Data to fit a head on: training images, the trained model's logits ``[n, classes]`` for them, and its head."""

    images: PixelSet
    trained: NDArray[np.float32]
    head: FloatHead


@dataclass(frozen=True)
class SearchContext:
    """Inputs of a quantization search beside the quantizer.

    Attributes:
        open_files: loads files into the engine.
        evaluate: the accuracy gate.
        refit: data for attempts that fit the head again; called only for those.
        probe: images that single operations are measured on; called only if that is needed.
        task: of the network.
        explain: measure the operations of the last file even if the gate passed it.
        progress: called after each attempt.
    """

    open_files: Callable[[list[Path]], Logits]
    evaluate: Callable[[Logits], GateResult]
    refit: Callable[[], RefitData]
    probe: Callable[[], Probe]
    task: Task = "classification"
    explain: bool = False
    progress: Progress = silent


@dataclass(frozen=True)
class ExportedVariant:
    """Files of one variant, their gate result, the record of the attempts, and the operations' sensitivities if they were measured."""

    files: list[Path]
    result: GateResult
    attempts: tuple[Attempt, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()


def search_quantization(quantizer: Quantizer, attempts: list[Int8Settings], folder: Path, context: SearchContext) -> ExportedVariant:
    """Quantize with one setting after the other until the gate passes a file or none is left.

    ``attempts`` are cheapest first; a later one overwrites the files of an earlier one in ``folder``.

    Raises:
        ExportError: no attempt could write a file.
    """
    records: list[Attempt] = []
    files: list[Path] = []
    result: GateResult | None = None
    ranked: tuple[Sensitivity, ...] = ()
    failure: ExportError | None = None
    for number, settings in enumerate(attempts):
        if settings.sensitive and not ranked:
            ranked = _rank(quantizer, context)
        fp32 = tuple(item.operation for item in ranked[: settings.sensitive] if item.divergence > 0)
        if settings.sensitive and len(fp32) < settings.sensitive // 2:
            continue  # fewer operations are sensitive than the attempt before kept in fp32
        context.progress(f"quantizing: {settings.method}", number, len(attempts))
        try:
            written = quantizer.quantize(settings, folder, fp32)
            if settings.refit:
                features = context.open_files(quantizer.write_features(folder))
                written = quantizer.replace_head(refit_head(features, context.refit()), folder)
        except ExportError as error:
            failure = error  # another attempt may do what this one cannot
            records.append(Attempt(method=settings.method, reason=str(error)))
            continue
        files, result = written, context.evaluate(context.open_files(written))
        records.append(_record(settings, result))
        if not result.reason:
            break
    if result is None:
        raise failure or AssertionError("no settings to attempt")
    if context.explain and not ranked:
        ranked = _rank(quantizer, context)
    return ExportedVariant(files, result, tuple(records), ranked)


def _rank(quantizer: Quantizer, context: SearchContext) -> tuple[Sensitivity, ...]:
    with tempfile.TemporaryDirectory() as work:
        return rank_operations(
            quantizer, context.probe(), context.task, Path(work), open_files=context.open_files, progress=context.progress
        )


def _record(settings: Int8Settings, result: GateResult) -> Attempt:
    return Attempt(
        method=settings.method,
        accuracy=result.validation.value,
        drop=result.drop,
        confident_agreement=result.agreement.confident_agreement,
        passed=not result.reason,
        accuracy_drop=result.accuracy_drop,
        unlabeled=result.unlabeled,
        reason=result.reason,
    )


def refit_head(features: Logits, data: RefitData) -> FloatHead:
    """The head that turns the quantized backbone's features into the trained model's logits, by ridge regression around the old head.

    Fitting the trained model's logits rather than the labels keeps its predictions, right and wrong, and does not depend on how the head
    was trained; the pull to the old head makes the correction small where the images carry little information.

    Args:
        features: images ``[batch, 3, H, W]`` → quantized features ``[batch, width]``.
        data: training images with the trained model's logits.
    """
    found = outputs_of(features, data.images).astype(np.float64)
    mean = found.mean(axis=0)
    centered = found - mean
    residual = data.trained - (found @ data.head.weight.T + data.head.bias)
    offset = residual.mean(axis=0)
    gram = centered.T @ centered / len(found)
    gram[np.diag_indices_from(gram)] += REFIT_PENALTY * max(float((centered**2).mean()), 1e-12)
    change = np.linalg.solve(gram, centered.T @ (residual - offset) / len(found)).T
    weight = data.head.weight + change
    bias = data.head.bias + offset - change @ mean
    return FloatHead(weight.astype(np.float32), bias.astype(np.float32))
