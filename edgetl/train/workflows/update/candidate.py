"""Candidate of an update: the fitted head, and its comparison with the previous model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.output_decoding import softmax
from edgetl.core.preprocess import PreprocessSpec, decode_image, normalize, to_pixels
from edgetl.core.progress import Progress, silent
from edgetl.data.audit.copies import copy_sets
from edgetl.data.folder import Sample
from edgetl.data.loading import Prepare, labels_of
from edgetl.data.split import Splits
from edgetl.train.artifacts.memory import Memory, Remembered, join
from edgetl.train.artifacts.run import Run
from edgetl.train.config.update.options import UpdateConfig
from edgetl.train.config.update.result import BalancedAccuracy, ContradictedLabels, PreviousAccuracy, Promotion, Trigger
from edgetl.train.continual.previous_task import compare_predictions
from edgetl.train.heads.fit import set_linear_head
from edgetl.train.heads.linear import LinearHead
from edgetl.train.inputs.features import features_of
from edgetl.train.networks.backbone import Backbone
from edgetl.train.workflows.finetune import choose_device
from edgetl.train.workflows.update.gate import compare, decide
from edgetl.train.workflows.update.head import UpdateData, fit_head, out_of_fold
from edgetl.train.workflows.update.network import head_of_run, widen
from edgetl.train.workflows.update.poisoning import SIDE, contradicted_labels, find_trigger
from edgetl.train.workflows.update.recall import Recalled, recall

# Features of each previous class, drawn ones included, and of all previous classes.
MOST_DRAWN, MOST_ROWS = 400, 20_000
# Probability of the label of a doubtful image is below this.
DOUBTFUL = 0.3


@dataclass(frozen=True)
class New:
    """Features of the new training and validation images."""

    train: Remembered
    val: Remembered


@dataclass(frozen=True)
class Candidate:
    """Updated model before the promotion.

    Attributes:
        backbone: network with the updated head.
        splits: new images.
        previous: replay memory of the previous classes.
        new: features of the new images.
        promotion: decision of the promotion gate.
    """

    backbone: Backbone
    splits: Splits
    previous: Memory
    new: New
    promotion: Promotion


def fit_candidate(run: Run, splits: Splits, config: UpdateConfig, *, progress: Progress = silent) -> Candidate:
    """Fit the updated head, and compare it with the previous one.

    Args:
        run: run to update.
        splits: new images, with the classes of the run and the new classes.
        config: update options.
        progress: called for each batch of features and each fold.

    Raises:
        DataError: the images of the run are missing.
        RunError: the run is damaged.
    """
    backbone = widen(run, len(splits.folder.labels))
    extract = features_of(backbone, device=choose_device("auto"), images=2 * len(splits.folder.samples))
    recalled = recall(run, config, extract, progress=progress)
    previous = recalled.memory
    every = (*splits.train, *splits.val)
    thumbnails, count = np.zeros((len(every), SIDE, SIDE, 3), np.uint8), len(splits.train)
    features = extract(every, prepare=_with_thumbnails(every, thumbnails), progress=progress)
    new = New(
        Remembered(features[:count], labels_of(splits.train), splits.train),
        Remembered(features[count:], labels_of(splits.val), splits.val),
    )
    old, data = head_of_run(run), _update_data(previous, new.train, len(splits.folder.labels), config.seed)
    head = fit_head(data, old)
    set_linear_head(backbone.head, head)
    outputs = np.concatenate([out_of_fold(data, old, seed=config.seed, progress=progress), _outputs(head, new.val)])
    checks = _check_labels(data, old, (outputs, new), thumbnails, splits, config.seed)
    promotion = decide(_compare(run, (old, head), outputs, (recalled, new), checks), config)
    return Candidate(backbone, splits, previous, new, promotion)


def _check_labels(
    data: UpdateData,
    old: LinearHead,
    predicted: tuple[NDArray[np.float32], New],
    thumbnails: NDArray[np.uint8],
    splits: Splits,
    seed: int,
) -> tuple[ContradictedLabels, Trigger | None]:
    """Check the new labels. ``predicted`` has the out-of-sample outputs of the new images, and ``thumbnails`` belong to the same images.

    Wrong labels would also train the heads that should contradict them. Doubtful images are therefore left out of a second pass.
    """
    outputs, new = predicted
    count, every = len(new.train.labels), join(new.train, new.val)
    given = softmax(outputs[:count])[np.arange(count), new.train.labels]
    doubtful = np.flatnonzero(given < DOUBTFUL)
    again = out_of_fold(data, old, seed=seed, doubtful=doubtful)
    held_out = _outputs(fit_head(data.without(doubtful), old), new.val)
    contradicted = contradicted_labels(softmax(np.concatenate([again, held_out])), splits)
    return contradicted, find_trigger((thumbnails, every), data, old, splits, seed=seed)


def _update_data(previous: Memory, new: Remembered, classes: int, seed: int) -> UpdateData:
    """Join the replayed features, features that are drawn from the statistics of the previous classes, and the new features."""
    known = len(previous.statistics.counts)
    replayed = np.bincount(previous.train.labels, minlength=known)
    # A class is not drawn more often than it has images. Without replay, nothing is drawn.
    wanted = np.minimum(previous.statistics.counts, min(MOST_DRAWN, MOST_ROWS // known)) - replayed
    drawn = previous.statistics.draw(np.maximum(wanted, 0) * (replayed > 0), np.random.default_rng(seed))
    rows = [previous.train, drawn, new]
    return UpdateData(
        np.concatenate([part.features for part in rows]),
        np.concatenate([part.labels for part in rows]),
        _groups(new.samples),
        len(previous.train.labels) + len(drawn.labels),
        classes,
    )


def _with_thumbnails(samples: Sequence[Sample], thumbnails: NDArray[np.uint8]) -> Prepare:
    """Return a preprocessing function that also writes the thumbnail of each image: its network input, resized."""
    rows = {sample.path: row for row, sample in enumerate(samples)}

    def prepare(sample: Sample, spec: PreprocessSpec) -> NDArray[np.float32]:
        pixels = to_pixels(decode_image(sample.path, spec), spec)
        thumbnails[rows[sample.path]] = np.asarray(pixels.resize((SIDE, SIDE), Image.Resampling.BOX))
        out = np.empty((3, *spec.input_size), np.float32)
        normalize(pixels, spec, out)
        return out

    return prepare


def _groups(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Return the group of each image. Copies of an image are in one group."""
    sets = copy_sets(samples)
    keys = [sample.group or sets.get(sample.content, sample.content) for sample in samples]
    numbers = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)


def _outputs(head: LinearHead, images: Remembered) -> NDArray[np.float32]:
    outputs: NDArray[np.float32] = images.features @ head.weight.T + head.bias
    return outputs


def _compare(
    run: Run,
    heads: tuple[LinearHead, LinearHead],
    outputs: NDArray[np.float32],
    images: tuple[Recalled, New],
    checks: tuple[ContradictedLabels, Trigger | None],
) -> Promotion:
    """Compare the previous and the updated head on the new and on the previous validation images.

    ``outputs`` are the out-of-sample outputs of the updated head for the new images, ``[n, classes]``.
    """
    old, head = heads
    recalled, new = images
    previous, first = recalled.memory.val, recalled.predicted
    every = join(new.train, new.val)
    before, after = _outputs(old, every).argmax(axis=1) == every.labels, outputs.argmax(axis=1) == every.labels
    previous_outputs, truth = _outputs(head, previous), previous.labels
    among_previous = previous_outputs[:, : len(old.bias)].argmax(axis=1)
    among_all = previous_outputs.argmax(axis=1) == truth
    labels = np.concatenate([every.labels, truth])
    balanced = [_balanced(labels, np.concatenate(rows)) for rows in ((before, first == truth), (after, among_all))]
    return Promotion(
        new=compare(before, after),
        previous=PreviousAccuracy(
            forgetting=compare_predictions((run.record.name, "own"), run.record.labels, truth, first, among_previous),
            among_all=float(among_all.mean()),
        ),
        balanced=BalancedAccuracy(before=balanced[0], after=balanced[1]),
        contradicted=checks[0],
        trigger=checks[1],
    )


def _balanced(labels: NDArray[np.int64], right: NDArray[np.bool_]) -> float:
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))
