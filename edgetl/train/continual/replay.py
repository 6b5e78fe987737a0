"""Old or general images that are shown again among the new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import is_run
from edgetl.core.progress import Progress
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import labels_of
from edgetl.train.artifacts.run import open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.continual.previous_task import OldTask
from edgetl.train.inputs.features import FrozenFeatures

# Labels of replayed images that are no new class: ``-1 - i`` is the old class ``i``, and this one none at all.
UNLABELLED = -(10**9)


def replayed(
    config: TrainConfig, labels: Sequence[str], old: OldTask | None, extract: FrozenFeatures, known: set[str], *, progress: Progress
) -> list[Sample]:
    """The images that ``config.replay`` names, the most typical of each class, labelled for training.

    Args:
        config: names a run or a folder, and how many images of each class.
        labels: the new classes; a replayed class of the same name is the same class.
        old: the old task; its classes are answered through its head where the new network has not all of them.
        extract: features, of the starting trunk.
        known: contents that are new images already, of any split, and are not shown twice.
        progress: told of the features.

    Raises:
        DataError: the folder, or the run's images, cannot be used.
        RunError: the run is damaged.
    """
    source = Path(config.continual.replay or "")
    if is_run(source):
        run = open_run(source)
        names, samples = run.record.labels, run.samples("train")
    else:
        folder = scan(source, progress=progress)
        names, samples = folder.labels, list(folder.samples)
    samples = [sample for sample in samples if sample.content not in known]
    if not samples:
        return []
    chosen = herd(extract(samples, progress=progress), labels_of(samples), config.continual.replay_per_class)
    return [replace(samples[index], label=_label(names[samples[index].label], labels, old)) for index in chosen]


def _label(name: str, labels: Sequence[str], old: OldTask | None) -> int:
    if name in labels:
        return labels.index(name)
    if old is not None and old.run is not None and name in old.run.record.labels:
        return -1 - old.run.record.labels.index(name)
    return UNLABELLED


def herd(features: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> list[int]:
    """Rows of the ``count`` images of each class whose mean follows the class's mean most closely (iCaRL: Rebuffi et al. 2017,
    arXiv:1611.07725).

    Args:
        features: float32 ``[n, width]``.
        labels: int64 ``[n]``.
        count: of each class.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    chosen: list[int] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        mean, total = unit[rows].mean(axis=0), np.zeros(unit.shape[1])
        left = list(rows)
        for taken in range(min(count, len(rows))):
            apart = np.linalg.norm(mean - (total + unit[left]) / (taken + 1), axis=1)
            row = left.pop(int(apart.argmin()))
            total += unit[row]
            chosen.append(int(row))
    return chosen
