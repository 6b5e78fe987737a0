"""Near-duplicates: nearest neighbors by frozen features, confirmed by image registration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgetl.core.progress import Progress, silent
from edgetl.data.audit.copies import Joined, Pair
from edgetl.data.content.registration import COARSE, FINE, Band, Details, Thumbnail, correlate, find_details
from edgetl.train.workflows.audit.features import AuditFeatures

# Neighbors of each image that are compared, and principal components that remain for the search.
NEIGHBORS, COMPONENTS = 5, 256
# Similarities to the nearest image of another label, as percentiles over all images. Half of the images have such a neighbor by chance
# above the first; 1 in 100 above the second; 1 in 1000 above the third.
CANDIDATE, LIKELY, SIMILAR = 50.0, 99.0, 99.9
# Least correlation of the coarse details of a near-duplicate, and of its fine details. Similar objects on a plain background have equal
# coarse details. Images that were enlarged have no fine details: their coarse ones need the third correlation, or the similarity of a
# likely candidate. See bench/accuracy/audit.py.
LEAST_COARSE, LEAST_FINE, LEAST_COARSE_ALONE = 0.80, 0.80, 0.88
# Largest number of reported pairs of similar images.
MOST_SIMILAR = 60
# Values of one block of similarities, and number of images whose details are kept (300 kB each, 1 MB with fine details).
_BLOCK_VALUES, _KEPT = 30_000_000, 300
_NO_COLORS = np.zeros((1, 1, 3), np.uint8)


@dataclass(frozen=True)
class NearDuplicates:
    """Result of the search.

    Attributes:
        pairs: near-duplicates.
        similar: similar images with other details: two indices and the similarity. Pairs with different labels come first, the most
            similar first.
        threshold: calibrated similarity of a candidate.
    """

    pairs: tuple[Pair, ...]
    similar: tuple[tuple[int, int, float], ...]
    threshold: float


@dataclass(frozen=True, eq=False)
class _Neighbors:
    indices: NDArray[np.int64]
    similarities: NDArray[np.float32]
    other: NDArray[np.float32]


def find_near_duplicates(found: AuditFeatures, labels: NDArray[np.int64], joined: Joined, *, progress: Progress = silent) -> NearDuplicates:
    """Find near-duplicates: cropped, edited, mirrored or re-encoded images.

    Images of different labels are rarely near-duplicates. Their similarities therefore calibrate the thresholds for the backbone.

    Args:
        found: features and thumbnails.
        labels: label (or stratum) of each image, int64 ``[n]``.
        joined: sets of copies. Only their first images are compared, without uniform and dark ones. Near-duplicates are added to it.
        progress: callback, called after each block.
    """
    rows = np.array([index for index in range(len(labels)) if joined.root(index) == index and not found.plain[index]])
    if len(rows) < 3:
        return NearDuplicates((), (), 1.0)
    neighbors = _nearest(_project(found.features[rows]), labels[rows], progress)
    usual = neighbors.other if (neighbors.other > -1).any() else neighbors.similarities[:, -1]
    candidate, likely, similar = (float(value) for value in np.percentile(usual, (CANDIDATE, LIKELY, SIMILAR)))
    candidates = _pairs(neighbors, candidate)
    compare, pairs, others = _Comparison(found.thumbnails[rows], found.enlarged[rows]), [], []
    for done, (first, second, similarity) in enumerate(candidates, start=1):
        score = compare(first, second, likely=similarity >= likely)
        pair = int(rows[first]), int(rows[second])
        if score:
            joined.connect(*pair)
            pairs.append(Pair(*pair, "near-duplicate", round(score, 3)))
        elif similarity >= similar:
            others.append((*pair, similarity))
        progress("comparing near-duplicates", done, len(candidates))
    # A later pair may have joined the sets of both images.
    others = [item for item in others if not joined.connected(item[0], item[1])]
    others.sort(key=lambda item: (labels[item[0]] == labels[item[1]], -item[2]))
    return NearDuplicates(tuple(pairs), tuple(others[:MOST_SIMILAR]), round(candidate, 3))


class _Comparison:
    """Comparison of pairs of images. The details of the last images are kept."""

    def __init__(self, thumbnails: NDArray[np.uint8], enlarged: NDArray[np.bool_]) -> None:
        self._thumbnails = thumbnails
        self._enlarged = enlarged
        self._details = lru_cache(_KEPT)(self._find_details)

    def __call__(self, first: int, second: int, *, likely: bool) -> float:
        """Return the correlation of two near-duplicates, or 0 for other images. Likely pairs are also compared mirrored."""
        for orientation in (0, 1) if likely else (0,):
            score = self._correlate(first, second, orientation, COARSE)
            if score < LEAST_COARSE:
                continue
            if self._enlarged[first] or self._enlarged[second]:
                if likely or score >= LEAST_COARSE_ALONE:
                    return score
            elif (score := self._correlate(first, second, orientation, FINE)) >= LEAST_FINE:
                return score
        return 0.0

    def _correlate(self, first: int, second: int, orientation: int, band: Band) -> float:
        return correlate(self._details(first, 0, band), self._details(second, orientation, band))

    def _find_details(self, index: int, orientation: int, band: Band) -> Details:
        return find_details(Thumbnail(self._thumbnails[index], _NO_COLORS).oriented(orientation), band)


def _project(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the principal components of the features with unit norm, float32 ``[n, COMPONENTS]``."""
    centered = features - features.mean(axis=0)
    _, directions = np.linalg.eigh(centered.T @ centered)
    projected = centered @ directions[:, -COMPONENTS:]
    norms = np.linalg.norm(projected, axis=1, keepdims=True)
    return (projected / np.maximum(norms, 1e-12)).astype(np.float32)


def _nearest(rows: NDArray[np.float32], labels: NDArray[np.int64], progress: Progress) -> _Neighbors:
    """Return the nearest neighbors of each image, and its largest similarity to an image of another label, by blocks of products."""
    count, kept = len(rows), min(NEIGHBORS, len(rows) - 1)
    step = max(1, _BLOCK_VALUES // count)
    found = _Neighbors(np.zeros((count, kept), np.int64), np.zeros((count, kept), np.float32), np.full(count, -1, np.float32))
    for start in range(0, count, step):
        part = np.arange(start, min(start + step, count))
        similarities = rows[part] @ rows.T
        similarities[np.arange(len(part)), part] = -1
        best = np.argpartition(-similarities, kept - 1, axis=1)[:, :kept]
        values = np.take_along_axis(similarities, best, axis=1)
        order = np.argsort(-values, axis=1)
        found.indices[part] = np.take_along_axis(best, order, axis=1)
        found.similarities[part] = np.take_along_axis(values, order, axis=1)
        similarities[labels[part][:, None] == labels[None]] = -1
        found.other[part] = similarities.max(axis=1)
        progress("searching near-duplicates", int(part[-1]) + 1, count)
    return found


def _pairs(neighbors: _Neighbors, least: float) -> list[tuple[int, int, float]]:
    """Return each pair of neighbors above a similarity once, in the order of the images."""
    first, place = np.nonzero(neighbors.similarities >= least)
    second = neighbors.indices[first, place]
    found = {
        (min(pair), max(pair)): float(value)
        for *pair, value in zip(first.tolist(), second.tolist(), neighbors.similarities[first, place].tolist(), strict=True)
    }
    return [(*pair, value) for pair, value in sorted(found.items())]
