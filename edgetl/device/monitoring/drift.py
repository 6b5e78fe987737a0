"""Drift detection: compare a sliding window of images with the reference of the bundle, by tests with a controlled false-alarm rate.

- Two-sample Kolmogorov-Smirnov test for each label score and each image statistic, with Bonferroni correction. In the comparison of
  Rabanser, Günnemann and Lipton 2019 ("Failing Loudly", arXiv:1810.11953), univariate tests of a classifier's outputs with this
  correction detect most shifts. The p-value is the bound ``2 exp(-2 D² nm/(n+m))`` of Massart 1990 (doi:10.1214/aop/1176990746) for one
  sample, which Wei and Dudley 2012 (doi:10.1016/j.spl.2011.11.004) examine for two.
- Population stability index (PSI) of the classes and of the confidence. Its limit is the quantile of its distribution, chi-squared times
  ``1/n + 1/m`` (Yurdakul and Naranjo 2020, doi:10.21314/JRMV.2020.227), and at least 0.25, the conventional limit of a large shift.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.core.reference import LEVELS, STATISTICS, Quantiles, Reference, class_of, confidence_bin, rounded_scores, rounded_statistics
from edgetl.core.results import Prediction
from edgetl.core.tasks import OutputDecoding

# Expected number of false alarms per image, for independent images. It is split among the tests of a window and their features.
FALSE_ALARMS_PER_IMAGE = 1e-8
# Images between two tests.
STEP = 10
# Images of the first test after a start.
LEAST_WINDOW = 50
LEAST_PSI = 0.25
# Bins with fewer images are combined. The distribution of the PSI is known for larger bins only.
LEAST_EXPECTED = 5.0


@dataclass(frozen=True)
class Change:
    """Significant change of a distribution.

    Attributes:
        name: ``image:`` and a statistic, ``score:`` and a label, ``classes`` or ``confidence``.
        value: Kolmogorov-Smirnov distance, 0..1, or PSI.
        limit: smallest significant value.
        before: median of the reference; none for ``classes`` and ``confidence``.
        now: median of the window.
    """

    name: str
    value: float
    limit: float
    before: float | None = None
    now: float | None = None


@dataclass(frozen=True)
class DriftEvent:
    """Start or end of drift.

    Attributes:
        kind: ``drift``: the window differs from the reference. ``drift-end``: no difference in the images of a whole window.
        window: number of images in the window.
        changes: significant changes, the largest relative to its limit first; empty at the end.
    """

    kind: Literal["drift", "drift-end"]
    window: int
    changes: tuple[Change, ...] = ()


class DriftDetector:
    """Sliding window of images of one model, tested against its reference.

    Args:
        reference: reference of the bundle.
        decoding: task, labels and decision rule of the bundle.
        window: number of images in a full window.

    Attributes:
        drifted: true between the events ``drift`` and ``drift-end``.
    """

    def __init__(self, reference: Reference, decoding: OutputDecoding, *, window: int = 100) -> None:
        self.drifted = False
        self._reference, self._decoding = reference, decoding
        self._indices = {label: index for index, label in enumerate(decoding.labels)}
        self._scores: deque[NDArray[np.float64]] = deque(maxlen=window)
        self._statistics: deque[NDArray[np.float64]] = deque(maxlen=window)
        self._classes: deque[str | None] = deque(maxlen=window)
        self._bins: deque[int] = deque(maxlen=window)
        self._window, self._count, self._calm = window, 0, 0
        self._tests = len(reference.scores) + len(reference.images) + 2

    def add(self, prediction: Prediction, statistics: Sequence[float] | NDArray[np.float32] | None) -> DriftEvent | None:
        """Add an image, and test the window if a test is due. Return the event if drift starts or ends.

        Values that are not finite are left out.

        Args:
            prediction: prediction of the image.
            statistics: ``image_statistics`` of the image, float32 ``[7]``; none if its pixels are not available.
        """
        if not np.isfinite(prediction.scores).all():
            return None
        self._scores.append(rounded_scores(prediction.scores, self._decoding))
        self._classes.append(class_of(prediction, self._decoding))
        self._bins.append(confidence_bin(prediction.score))
        if statistics is not None and np.isfinite(statistics).all():
            self._statistics.append(rounded_statistics(statistics))
        self._count += 1
        if self._count % STEP or len(self._scores) < min(LEAST_WINDOW, self._window):
            return None
        changes = self.changes()
        self._calm = 0 if changes else self._calm + STEP
        if changes and not self.drifted:
            self.drifted = True
            return DriftEvent("drift", len(self._scores), changes)
        if self.drifted and self._calm >= self._window:
            self.drifted = False
            return DriftEvent("drift-end", len(self._scores))
        return None

    def changes(self) -> tuple[Change, ...]:
        """Return the significant changes of the window, the largest relative to its limit first."""
        alpha = FALSE_ALARMS_PER_IMAGE * STEP / self._tests
        scores = np.array(self._scores)
        found = [
            _compare(f"score:{label}", scores[:, self._indices[label]], quantiles, self._reference.n, alpha)
            for label, quantiles in self._reference.scores.items()
        ]
        if len(self._statistics) >= min(LEAST_WINDOW, self._window):
            columns = np.array(self._statistics).T
            found += [
                _compare(f"image:{name}", columns[STATISTICS.index(name)], quantiles, self._reference.n, alpha)
                for name, quantiles in self._reference.images.items()
                if name in STATISTICS
            ]
        if classes := self._reference.classes:
            found.append(_stability("classes", [self._classes.count(name) for name in classes], list(classes.values()), alpha))
        if self._reference.confidence:
            counts = [self._bins.count(index) for index in range(len(self._reference.confidence))]
            found.append(_stability("confidence", counts, self._reference.confidence, alpha))
        significant = [change for change in found if change.value > change.limit]
        return tuple(sorted(significant, key=lambda change: change.limit - change.value))


def ks_distance(values: NDArray[np.float64], quantiles: Quantiles) -> float:
    """Return the Kolmogorov-Smirnov distance between ``values`` ``[n]`` and a reference, 0..1.

    Between two quantiles the reference's cumulative frequency is only known to an interval. The distance is to the near end of the
    interval. It is at most the exact distance, and at least the exact distance less the step of the levels (0.025).
    """
    ordered = np.sort(values)
    at = np.searchsorted(quantiles, ordered, side="right")  # quantiles <= value
    below = np.searchsorted(quantiles, ordered, side="left")  # quantiles < value
    levels = np.concatenate(([0.0], LEVELS, [1.0]))
    lowest, highest = levels[below], np.where(at == 0, 0.0, levels[at + 1])
    own = np.searchsorted(ordered, ordered, side="right") / len(ordered)
    own_before = np.searchsorted(ordered, ordered, side="left") / len(ordered)
    return float(max((own - highest).max(), (lowest - own_before).max(), 0.0))


def stability_index(counts: Sequence[int], reference: Sequence[int]) -> tuple[float, int]:
    """Return the population stability index of two histograms, and its number of bins.

    Bins with fewer than 5 images, in the reference or expected in the window, are combined. Half an image is added to each bin, so that
    empty bins have a finite logarithm.
    """
    now, before = np.array(counts, np.float64), np.array(reference, np.float64)
    small = before * min(1.0, now.sum() / before.sum()) < LEAST_EXPECTED
    if small.any():
        now, before = (np.append(values[~small], values[small].sum()) for values in (now, before))
    now, before = ((values + 0.5) / (values + 0.5).sum() for values in (now, before))
    return float(((now - before) * np.log(now / before)).sum()), len(now)


def ks_limit(n: int, m: int, alpha: float) -> float:
    """Return the smallest significant Kolmogorov-Smirnov distance of samples of ``n`` and ``m`` values at level ``alpha``."""
    return math.sqrt(math.log(2 / alpha) / 2 * (1 / n + 1 / m))


def stability_limit(n: int, m: int, bins: int, alpha: float) -> float:
    """Return the smallest significant PSI of samples of ``n`` and ``m`` values in ``bins`` bins at level ``alpha``.

    The chi-squared quantile is the approximation of Wilson and Hilferty 1931 (doi:10.1073/pnas.17.12.684).
    """
    freedom = max(1, bins - 1)
    z = -NormalDist().inv_cdf(alpha)
    quantile = freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3
    return max(LEAST_PSI, quantile * (1 / n + 1 / m))


def _compare(name: str, values: NDArray[np.float64], quantiles: Quantiles, n: int, alpha: float) -> Change:
    limit = ks_limit(len(values), n, alpha)
    distance = round(ks_distance(values, quantiles), 4)
    return Change(name, distance, round(limit, 4), quantiles[len(quantiles) // 2], round(float(np.median(values)), 4))


def _stability(name: str, counts: Sequence[int], reference: Sequence[int], alpha: float) -> Change:
    value, bins = stability_index(counts, reference)
    return Change(name, round(value, 4), round(stability_limit(sum(counts), sum(reference), bins, alpha), 4))
