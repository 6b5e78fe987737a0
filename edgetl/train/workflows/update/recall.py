"""Recall of the previous task: training images to replay, statistics of their classes, and validation images to compare."""

from __future__ import annotations

import numpy as np

from edgetl.core.progress import Progress, silent
from edgetl.data.folder import Part
from edgetl.data.loading import labels_of, stratified
from edgetl.errors import DataError
from edgetl.train.artifacts.memory import TENSORS_NAME, Memory, Remembered, measure_statistics, read_features, read_statistics
from edgetl.train.artifacts.run import Run
from edgetl.train.config.update.options import UpdateConfig
from edgetl.train.continual.replay import herd
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.workflows.update.images import distinct

PARTS: tuple[Part, ...] = ("train", "val")
# Largest number of training images of each class for the statistics. More hardly change them.
MOST_MEASURED = 500
# Largest number of previous validation images to compare. The standard error of a drop of 2 points is then below 0.5 points.
MOST_COMPARED = 2000


def recall(run: Run, config: UpdateConfig, extract: FrozenFeatures, *, progress: Progress = silent) -> Memory:
    """Return the replay memory of a run: that of its folder, or the most typical of its images.

    Args:
        run: run to update.
        config: update options, with the number of training images of each class to replay.
        extract: features of the run's network.
        progress: called for each batch of features.

    Raises:
        DataError: the run's images are missing, or their content changed; or the run has no validation images.
        RunError: the memory is damaged.
    """
    labels, kept = len(run.record.labels), TENSORS_NAME in run.record.files
    if run.record.folds:
        raise DataError(
            f"{run.path} was cross-validated and has no validation images on which the promotion gate could compare the models. Train the "
            f"run with --val 0.15."
        )
    if run.record.update and run.record.update.memory == "features":
        train, val = read_features(run)
    else:
        try:
            found = [distinct(run.samples(part, config.data)) for part in PARTS]
        except DataError as error:
            raise DataError(
                f"{error} Without them, an update would forget the previous classes, and the promotion gate could not compare the models."
            ) from error
        parts = stratified(found[0], MOST_MEASURED * labels), stratified(found[1], MOST_COMPARED)
        features = extract([*parts[0], *parts[1]], progress=progress)
        rows = np.split(features, [len(parts[0])])
        train, val = (Remembered(part, labels_of(samples), tuple(samples)) for part, samples in zip(rows, parts, strict=True))
    statistics = read_statistics(run) if kept else measure_statistics(train, labels)
    return Memory(typical(train, config.replay_per_class), val, statistics)


def typical(images: Remembered, count: int) -> Remembered:
    """Return the ``count`` most typical images of each class (herding)."""
    return images.rows(herd(images.features, images.labels, count))
