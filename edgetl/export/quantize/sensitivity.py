"""Sensitivity of operations to quantization: each is put back to fp32 alone, and the outputs are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.manifest import Sensitivity
from edgetl.core.output_decoding import sigmoid, softmax
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import Task
from edgetl.export.gate.agreement import Logits
from edgetl.export.quantize.attempts import Probe, Quantizer

BATCH = 16
# Logarithms of scores below this depend on rounding only.
_LEAST_SCORE = 1e-6


def rank_operations(
    quantizer: Quantizer, probe: Probe, task: Task, folder: Path, *, open_files: Callable[[list[Path]], Logits], progress: Progress = silent
) -> tuple[Sensitivity, ...]:
    """Measure every operation of the last quantized model, the most sensitive first.

    Args:
        quantizer: holds the model.
        probe: images to measure with.
        task: how outputs are compared, see ``divergence``.
        folder: an empty folder for the models that are tried.
        open_files: loads files into the engine.
        progress: called after each operation.
    """

    def distance(files: list[Path]) -> float:
        logits = open_files(files)
        rows = [logits(probe.images[start : start + BATCH]) for start in range(0, len(probe.images), BATCH)]
        return divergence(probe.trained, np.concatenate(rows), task)

    operations = quantizer.operations()
    whole = distance(quantizer.write_restored("", folder))
    found = []
    for done, (name, kind) in enumerate(operations.items(), start=1):
        loss = whole - distance(quantizer.write_restored(name, folder))
        found.append(Sensitivity(operation=name, kind=kind, divergence=round(loss, 6)))
        progress("measuring operations", done, len(operations))
    return tuple(sorted(found, key=lambda item: -item.divergence))


def divergence(trained: NDArray[np.float32], found: NDArray[np.float32], task: Task) -> float:
    """Divergence of outputs ``[n, labels]`` from the trained model's, 0 where they are equal.

    For classes the mean Kullback-Leibler divergence of the scores, in nats; for labels its sum over them; for numbers the mean squared
    difference over their variance.
    """
    if task == "classification":
        return _kullback_leibler(softmax(trained), softmax(found))
    if task == "multi-label":
        there, here = sigmoid(trained), sigmoid(found)
        return _kullback_leibler(there, here) + _kullback_leibler(1 - there, 1 - here)
    return float(np.mean((trained - found) ** 2) / max(float(np.var(trained)), 1e-12))


def _kullback_leibler(there: NDArray[np.floating[Any]], here: NDArray[np.floating[Any]]) -> float:
    there, here = np.clip(there, _LEAST_SCORE, 1), np.clip(here, _LEAST_SCORE, 1)
    return float((there * np.log(there / here)).sum(axis=1).mean())
