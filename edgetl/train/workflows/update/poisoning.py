"""Checks of the new labels: contradicted labels, and images of one label that share a small area (backdoor trigger)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.stats import mannwhitneyu

from edgetl.core.files.names import printable
from edgetl.core.output_decoding import softmax
from edgetl.data.loading import labels_of
from edgetl.data.split import Splits
from edgetl.train.artifacts.memory import Remembered
from edgetl.train.config.update.result import ContradictedLabels, Trigger
from edgetl.train.heads.linear import LinearHead
from edgetl.train.workflows.update.head import UpdateData, fit_head, out_of_fold

# Probability of a contradicted label is below this.
CONTRADICTED = 0.02
# Largest number of listed files.
SHOWN = 20
# Side of the compared thumbnails, side of the compared blocks, and step between them, pixels. Any square of 6 pixels, 9 % of the side,
# contains a block.
SIDE, BLOCK, STEP = 64, 5, 2
# Largest root-mean-square difference of nearly identical areas, and least contrast of an area, gray levels. A flat area is like others.
SAME, CONTRAST = 8.0, 12.0
# Fewest images with a trigger. Largest number of images of a label, and of other labels, that are searched.
LEAST, MOST, MOST_OTHERS = 5, 200, 400
# Largest fraction of the other images with the same area, and of the image that is the same. A fixed camera has a fixed background.
ELSEWHERE, SHARED = 0.02, 0.3
# Fraction of contradicted images of an area, and level of the test for their probabilities: a trigger has more, and is below the level.
MAJORITY, LEVEL = 0.5, 1e-3
# Fewest other images of the label. Without them, a head cannot predict it.
LEAST_REST = 10
# Groups of each label that are tested, the largest first.
MOST_GROUPS = 3


def contradicted_labels(probabilities: NDArray[np.float32], splits: Splits) -> ContradictedLabels:
    """Find the labels of new images that have a low probability to heads that were fitted without the image.

    Hard images get uncertain predictions, and wrong labels are contradicted (``bench/accuracy/updates.py``).

    Args:
        probabilities: out-of-sample probabilities of the training images, then of the validation images, float32 ``[n, classes]``.
        splits: new images.
    """
    samples = [*splits.train, *splits.val]
    given = probabilities[np.arange(len(samples)), labels_of(samples)]
    found = [row for row in np.argsort(given, kind="stable").tolist() if given[row] < CONTRADICTED]
    files = tuple(printable(samples[row].path.relative_to(splits.folder.root).as_posix()) for row in found[:SHOWN])
    return ContradictedLabels(images=len(found), rate=len(found) / len(samples), files=files)


@dataclass(frozen=True, eq=False)
class Area:
    """Images of one label that share a small area.

    Attributes:
        rows: indices of the images.
        top, left: place of the area in the thumbnails, pixels.
    """

    rows: NDArray[np.int64]
    top: int
    left: int


def shared_areas(thumbnails: NDArray[np.uint8], labels: NDArray[np.int64], label: int) -> list[Area]:
    """Return areas that are nearly identical in images of ``label`` and rare in other images, the most frequent first.

    Args:
        thumbnails: uint8 ``[n, SIDE, SIDE, 3]``.
        labels: int64 ``[n]``.
        label: label to search.
    """
    rng = np.random.default_rng(0)
    own = rng.permutation(np.flatnonzero(labels == label))[:MOST]
    others = rng.permutation(np.flatnonzero(labels != label))[:MOST_OTHERS]
    found = []
    for top, left in np.ndindex((SIDE - BLOCK) // STEP + 1, (SIDE - BLOCK) // STEP + 1):
        place = (slice(None), slice(top * STEP, top * STEP + BLOCK), slice(left * STEP, left * STEP + BLOCK))
        blocks = thumbnails[own][place].reshape(len(own), -1, 3).astype(np.float32)
        rows = np.flatnonzero(blocks.std(axis=1).mean(axis=1) > CONTRAST)
        if len(rows) < LEAST:
            continue
        flat = blocks[rows].reshape(len(rows), -1)
        squares = (flat**2).mean(axis=1)
        alike = squares[:, None] + squares[None] - 2 * flat @ flat.T / flat.shape[1] < SAME**2
        members = alike[alike.sum(axis=1).argmax()]
        if members.sum() < LEAST:
            continue
        center = flat[members].mean(axis=0)
        elsewhere = thumbnails[others][place].reshape(len(others), BLOCK * BLOCK * 3).astype(np.float32)
        if (((elsewhere - center) ** 2).mean(axis=1) < SAME**2).sum() <= ELSEWHERE * len(others):
            found.append(Area(own[rows[members]], top * STEP, left * STEP))
    small = (area for area in found if _shared(thumbnails[area.rows]) <= SHARED)
    return sorted(small, key=lambda area: -len(area.rows))


def _shared(thumbnails: NDArray[np.uint8]) -> float:
    """Return the fraction of the image that is nearly identical in most of ``thumbnails``, and not flat like a plain background."""
    pixels = thumbnails.astype(np.float32)
    middle = np.median(pixels, axis=0)
    differences = ((pixels - middle) ** 2).mean(axis=-1)
    size = (BLOCK, BLOCK, 0)
    spread = np.sqrt(np.maximum(uniform_filter(middle**2, size) - uniform_filter(middle, size) ** 2, 0)).mean(axis=-1)
    return float(((np.median(differences, axis=0) < SAME**2) & (spread > CONTRAST)).mean())


def find_trigger(
    images: tuple[NDArray[np.uint8], Remembered], data: UpdateData, previous: LinearHead, splits: Splits, *, seed: int
) -> Trigger | None:
    """Search a backdoor trigger: a shared area in images of one label, to which a head without these images gives other labels.

    An attacker stamps the area on images of other classes, so that the network predicts the label from the area alone (BadNets: Gu et al.
    2017, arXiv:1708.06733). To a head that has not seen the area, the images look like their own class: their probability of the label is
    lower than that of the label's other images (test of Mann and Whitney 1947, doi:10.1214/aoms/1177730491).

    Args:
        images: thumbnails and features of the new images: uint8 ``[n, SIDE, SIDE, 3]``. The training images are first.
        data: features for the head, of training images only.
        previous: previous head.
        splits: new images.
        seed: random seed of the folds.
    """
    thumbnails, new = images
    labels, samples = new.labels, (*splits.train, *splits.val)
    for label in np.unique(labels):
        for area in _distinct(shared_areas(thumbnails, labels, int(label))):
            probabilities = _probabilities(new, data, previous, area, seed)
            rest = np.setdiff1d(np.flatnonzero(labels == label), area.rows)
            contradicted = float((probabilities[area.rows].argmax(axis=1) != label).mean())
            if len(rest) < LEAST_REST or contradicted <= MAJORITY:
                continue
            if mannwhitneyu(probabilities[area.rows, label], probabilities[rest, label], alternative="less").pvalue < LEVEL:
                names = [printable(samples[row].path.relative_to(splits.folder.root).as_posix()) for row in area.rows.tolist()]
                return Trigger(
                    label=splits.folder.labels[label],
                    images=len(area.rows),
                    contradicted=contradicted,
                    left=area.left / SIDE,
                    top=area.top / SIDE,
                    side=BLOCK / SIDE,
                    files=tuple(sorted(names)[:SHOWN]),
                )
    return None


def _probabilities(new: Remembered, data: UpdateData, previous: LinearHead, area: Area, seed: int) -> NDArray[np.float32]:
    """Return out-of-sample probabilities of the new images, ``[n, classes]``, by heads that were fitted without the images of ``area``."""
    count = len(data.labels) - data.previous
    without = area.rows[area.rows < count]
    rest, kept = data.without(without), np.setdiff1d(np.arange(count), without)
    head = fit_head(rest, previous)
    logits = new.features @ head.weight.T + head.bias
    logits[kept] = out_of_fold(rest, previous, seed=seed)
    return softmax(logits)


def _distinct(areas: Sequence[Area]) -> Iterator[Area]:
    """Yield areas of different images, at most ``MOST_GROUPS``."""
    chosen: list[Area] = []
    for area in areas:
        if len(chosen) < MOST_GROUPS and all(2 * len(np.intersect1d(area.rows, other.rows)) < len(area.rows) for other in chosen):
            chosen.append(area)
            yield area
