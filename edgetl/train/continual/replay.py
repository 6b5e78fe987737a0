"""Replay: mix images of the previous task, or of a folder, into the batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from edgetl.core.bundle import is_run
from edgetl.core.progress import Progress
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import labels_of
from edgetl.data.split import Splits
from edgetl.train.artifacts.run import open_run
from edgetl.train.config.options import ContinualConfig
from edgetl.train.continual.previous_task import HeadInput, PreviousTask
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.loop.losses import StepOutputs

# Labels of replayed images outside the new classes: ``-1 - i`` is the previous class ``i``; ``UNLABELED`` is no class of either task.
UNLABELED = -(10**9)


class ReplayTerm:
    """Replay loss term: cross-entropy, through the previous head, of replayed images with previous classes that the new network lacks."""

    weight = 1.0

    def __init__(self, previous: PreviousTask, head_input: HeadInput, *, device: torch.device) -> None:
        self.head = copy.deepcopy(previous.head).requires_grad_(False).to(device)
        self.head_input = head_input

    def __call__(self, step: StepOutputs, /) -> torch.Tensor:
        rows = (step.targets < 0) & (step.targets > UNLABELED)
        if not bool(rows.any()):
            return step.logits.new_zeros(())
        return F.cross_entropy(self.head(self.head_input.features[rows]), -1 - step.targets[rows])


def choose_replayed(
    config: ContinualConfig, splits: Splits, previous: PreviousTask | None, extract: FrozenFeatures, *, progress: Progress
) -> list[Sample]:
    """Choose the most typical images of each class from the source in ``config.replay``, and label them for training.

    Images that are also in a split of the new images are excluded.

    Args:
        config: source (a run or a folder), and number of images per class.
        splits: new images. A replayed class with the name of a new class is that class.
        previous: previous task. Its head predicts the previous classes that the new network lacks.
        extract: feature extractor with the starting weights.
        progress: called for each batch of features.

    Raises:
        DataError: the folder or the images of the run cannot be used.
        RunError: the run is damaged.
    """
    source = Path(config.replay or "")
    if is_run(source):
        run = open_run(source)
        names, samples = run.record.labels, run.samples("train")
    else:
        folder = scan(source, progress=progress)
        names, samples = folder.labels, list(folder.samples)
    new = {sample.content for sample in (*splits.train, *splits.val, *splits.test)}
    samples = [sample for sample in samples if sample.content not in new]
    if not samples:
        return []
    chosen = herd(extract(samples, progress=progress), labels_of(samples), config.replay_per_class)
    return [replace(samples[index], label=_label(names[samples[index].label], splits.folder.labels, previous)) for index in chosen]


def _label(name: str, labels: Sequence[str], previous: PreviousTask | None) -> int:
    if name in labels:
        return labels.index(name)
    if previous is not None and previous.run is not None and name in previous.run.record.labels:
        return -1 - previous.run.record.labels.index(name)
    return UNLABELED


def herd(features: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> list[int]:
    """Choose typical images by herding: the mean of the chosen features approximates the class mean.

    Source: iCaRL, Rebuffi et al. 2017, arXiv:1611.07725.

    Args:
        features: float32 ``[n, width]``.
        labels: int64 ``[n]``.
        count: number of images per class.

    Returns:
        Row numbers, class by class, the most typical image first.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    chosen: list[int] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        mean, total = unit[rows].mean(axis=0), np.zeros(unit.shape[1])
        left = list(rows)
        for taken in range(min(count, len(rows))):
            distances = np.linalg.norm(mean - (total + unit[left]) / (taken + 1), axis=1)
            row = left.pop(int(distances.argmin()))
            total += unit[row]
            chosen.append(int(row))
    return chosen
