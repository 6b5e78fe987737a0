"""Quantization search: attempt settings in turn until a file passes the accuracy gate. Every attempt is recorded."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.manifest import Sensitivity
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Attempt
from edgetl.core.tasks import Task
from edgetl.data.loading import PixelSet
from edgetl.errors import ExportError
from edgetl.export.gate.agreement import GateResult, Logits, outputs_of
from edgetl.export.quantize.attempts import FloatHead, Int8Settings, MeasurementImages, Quantizer
from edgetl.export.quantize.sensitivity import rank_operations

# Ridge penalty towards the trained head, relative to the mean variance of a feature.
REFIT_PENALTY = 1.0


@dataclass(frozen=True)
class RefitData:
    """Data for re-fitting a head: training images, the trained model's logits ``[n, classes]`` for them, and its head."""

    images: PixelSet
    trained: NDArray[np.float32]
    head: FloatHead


@dataclass(frozen=True)
class SearchContext:
    """Inputs of a quantization search, except the quantizer.

    Attributes:
        open_files: loads files in the engine.
        evaluate: accuracy gate.
        refit: returns the data for re-fitting the head; called only if an attempt needs it.
        measurement_images: returns the images for measuring single operations; called only if an attempt needs them.
        task: task of the network.
        explain: measure the operations of the last file even if it passed the gate.
        progress: called before each attempt.
    """

    open_files: Callable[[list[Path]], Logits]
    evaluate: Callable[[Logits], GateResult]
    refit: Callable[[], RefitData]
    measurement_images: Callable[[], MeasurementImages]
    task: Task = "classification"
    explain: bool = False
    progress: Progress = silent


@dataclass(frozen=True)
class ExportedVariant:
    """Files of one variant, their gate result, the attempts, and the sensitivities of the operations if they were measured."""

    files: list[Path]
    result: GateResult
    attempts: tuple[Attempt, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()


def search_quantization(quantizer: Quantizer, attempts: list[Int8Settings], folder: Path, context: SearchContext) -> ExportedVariant:
    """Attempt the settings in turn until a file passes the accuracy gate.

    ``attempts`` are ordered by cost, cheapest first. Each attempt overwrites the files of the previous one in ``folder``. If no attempt
    passes, the result is that of the attempt with the smallest accuracy drop, and its reason begins with the method of this attempt.

    Raises:
        ExportError: no attempt could write a file.
    """
    records: list[Attempt] = []
    files: list[Path] = []
    results: list[tuple[str, GateResult]] = []
    ranked: tuple[Sensitivity, ...] = ()
    failure: ExportError | None = None
    for number, settings in enumerate(attempts):
        if settings.sensitive and not ranked:
            ranked = _rank(quantizer, context)
        fp32 = tuple(item.operation for item in ranked[: settings.sensitive] if item.divergence > 0)
        if settings.sensitive and len(fp32) < settings.sensitive // 2:
            continue  # the previous attempt already kept all sensitive operations in fp32
        context.progress(f"quantizing: {settings.method}", number, len(attempts))
        try:
            written = quantizer.quantize(settings, folder, fp32)
            if settings.refit:
                features = context.open_files(quantizer.write_features(folder))
                written = quantizer.replace_head(refit_head(features, context.refit()), folder)
        except ExportError as error:
            failure = error  # a later attempt may succeed
            records.append(Attempt(method=settings.method, reason=str(error)))
            continue
        files, result = written, context.evaluate(context.open_files(written))
        results.append((settings.method, result))
        records.append(_record(settings, result))
        if not result.reason:
            break
    if not results:
        raise failure or AssertionError("no settings to attempt")
    if context.explain and not ranked:
        ranked = _rank(quantizer, context)
    return ExportedVariant(files, _best(results, len(records)), tuple(records), ranked)


def _best(results: list[tuple[str, GateResult]], attempts: int) -> GateResult:
    """Return the last result if it passed; otherwise the one with the smallest accuracy drop, with its method in the reason."""
    if not results[-1][1].reason or attempts == 1:
        return results[-1][1]
    method, best = min(results, key=lambda item: (math.isnan(item[1].drop), item[1].drop, -item[1].agreement.confident_agreement))
    return replace(best, reason=f"best of {attempts} attempts ({method}): {best.reason}")


def _rank(quantizer: Quantizer, context: SearchContext) -> tuple[Sensitivity, ...]:
    with tempfile.TemporaryDirectory() as work:
        return rank_operations(
            quantizer, context.measurement_images(), context.task, Path(work), open_files=context.open_files, progress=context.progress
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
    """Re-fit the head to map the quantized backbone's features to the trained model's logits, by ridge regression around the trained head.

    The targets are the trained model's logits, not the labels. This preserves its predictions, correct or not, and is independent of how
    the head was trained. The penalty keeps the correction small in directions for which the images have little information.

    Args:
        features: function from images ``[batch, 3, H, W]`` to quantized features ``[batch, width]``.
        data: training images, the trained model's logits, and its head.

    Returns:
        the re-fitted head.
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
