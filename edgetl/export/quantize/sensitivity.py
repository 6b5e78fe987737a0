"""Sensitivity of operations to quantization: restore each one alone to fp32 and compare the outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.manifest import Sensitivity
from edgetl.core.output_decoding import anomaly_outputs, sigmoid, softmax
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import Task
from edgetl.export.gate.agreement import Logits
from edgetl.export.quantize.attempts import MeasurementImages, Quantizer

BATCH = 16
# Smallest score in a logarithm. The logarithm of a smaller score depends on rounding only.
_LEAST_SCORE = 1e-6


def rank_operations(
    quantizer: Quantizer,
    measured: MeasurementImages,
    task: Task,
    folder: Path,
    *,
    open_files: Callable[[list[Path]], Logits],
    progress: Progress = silent,
) -> tuple[Sensitivity, ...]:
    """Rank the operations of the last quantized model by their sensitivity, the most sensitive first.

    Args:
        quantizer: quantizer with the model.
        measured: images for the measurement.
        task: task of the network. It selects the comparison, see ``divergence``.
        folder: empty folder for temporary models.
        open_files: loads files in the engine.
        progress: called after each operation.
    """

    def distance(files: list[Path]) -> float:
        logits = open_files(files)
        rows = [logits(measured.images[start : start + BATCH]) for start in range(0, len(measured.images), BATCH)]
        return divergence(measured.trained, np.concatenate(rows), task)

    operations = quantizer.operations()
    whole = distance(quantizer.write_restored("", folder))
    found = []
    for done, (name, kind) in enumerate(operations.items(), start=1):
        loss = whole - distance(quantizer.write_restored(name, folder))
        found.append(Sensitivity(operation=name, kind=kind, divergence=round(loss, 6)))
        progress("measuring sensitivity", done, len(operations))
    return tuple(sorted(found, key=lambda item: -item.divergence))


def divergence(trained: NDArray[np.float32], found: NDArray[np.float32], task: Task) -> float:
    """Return the divergence of outputs ``[n, labels]`` from the trained model's. 0 means equal.

    - Classification: mean Kullback-Leibler divergence of the scores, nats.
    - Multi-label: the same, summed over the labels.
    - Regression and ordinal: mean squared difference, relative to the variance. Anomaly detection: the same for the image scores.
    """
    if task == "classification":
        return _kullback_leibler(softmax(trained), softmax(found))
    if task == "multi-label":
        there, here = sigmoid(trained), sigmoid(found)
        return _kullback_leibler(there, here) + _kullback_leibler(1 - there, 1 - here)
    if task == "anomaly":
        trained, found = anomaly_outputs(trained), anomaly_outputs(found)
    return float(np.mean((trained - found) ** 2) / max(float(np.var(trained)), 1e-12))


def _kullback_leibler(there: NDArray[np.floating[Any]], here: NDArray[np.floating[Any]]) -> float:
    there, here = np.clip(there, _LEAST_SCORE, 1), np.clip(here, _LEAST_SCORE, 1)
    return float((there * np.log(there / here)).sum(axis=1).mean())
