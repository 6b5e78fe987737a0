"""Recall of the previous task: training images to replay, statistics of their classes, and validation images to compare."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Part, Sample
from edgetl.data.loading import labels_of, stratified
from edgetl.errors import DataError
from edgetl.train.artifacts.memory import TENSORS_NAME, Memory, Remembered, measure_statistics, read_features, read_statistics
from edgetl.train.artifacts.run import Run
from edgetl.train.config.update.options import UpdateConfig
from edgetl.train.continual.replay import herd
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.workflows.update.images import distinct
from edgetl.train.workflows.update.network import head_of_run

PARTS: tuple[Part, ...] = ("train", "val")
# Largest number of training images of each class for the statistics. More hardly change them.
MOST_MEASURED = 500
# Largest number of previous validation images to compare. The standard error of a drop of 2 points is then below 0.5 points.
MOST_COMPARED = 2000
# Every fourth training image of a class is compared if there are no validation images.
COMPARED_EVERY = 4


@dataclass(frozen=True)
class Recalled:
    """Replay memory of a run, and the classes that the run predicts for its validation images, int64 ``[n]``."""

    memory: Memory
    predicted: NDArray[np.int64]


def recall(run: Run, config: UpdateConfig, extract: FrozenFeatures, *, progress: Progress = silent) -> Recalled:
    """Return the replay memory of a run: that of its folder, or the most typical of its images.

    A cross-validated run has no validation images. A quarter of its training images is compared in their place, and is not replayed. Their
    predictions are those of the cross-validation.

    Args:
        run: run to update.
        config: update options, with the number of training images of each class to replay.
        extract: features of the run's network.
        progress: called for each batch of features.

    Raises:
        DataError: the run's images are missing, or their content changed.
        RunError: the memory is damaged.
    """
    labels, kept, head = len(run.record.labels), TENSORS_NAME in run.record.files, head_of_run(run)
    if run.record.update and run.record.update.memory == "features":
        train, val = read_features(run)
    else:
        found = _find_images(run, config)
        parts = stratified(found[0], MOST_MEASURED * labels), stratified(found[1], MOST_COMPARED)
        features = extract([*parts[0], *parts[1]], progress=progress)
        rows = np.split(features, [len(parts[0])])
        train, val = (Remembered(part, labels_of(samples), tuple(samples)) for part, samples in zip(rows, parts, strict=True))
    statistics = read_statistics(run) if kept else measure_statistics(train, labels)
    predicted = (val.features @ head.weight.T + head.bias).argmax(axis=1)
    if run.record.folds:
        every = zip(run.samples("train", config.data), run.out_of_fold_outputs().argmax(axis=1), strict=True)
        known = {sample.path: label for sample, label in every}
        predicted = np.array([known[sample.path] for sample in val.samples])
    return Recalled(Memory(typical(train, config.replay_per_class), val, statistics), predicted)


def _find_images(run: Run, config: UpdateConfig) -> tuple[list[Sample], list[Sample]]:
    """Return the training images of a run to replay, and its images to compare."""
    try:
        train, val = (distinct(run.samples(part, config.data)) for part in PARTS)
    except DataError as error:
        raise DataError(
            f"{error} Without them, an update would forget the previous classes, and the promotion gate could not compare the models."
        ) from error
    if not run.record.folds:
        return train, val
    queues: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in sorted(train, key=lambda item: item.content):
        queues[sample.label].append(sample)
    compared = [sample for queue in queues.values() for sample in queue[COMPARED_EVERY - 1 :: COMPARED_EVERY]]
    held_out = {sample.path for sample in compared}
    return [sample for sample in train if sample.path not in held_out], compared


def typical(images: Remembered, count: int) -> Remembered:
    """Return the ``count`` most typical images of each class (herding)."""
    return images.rows(herd(images.features, images.labels, count))
