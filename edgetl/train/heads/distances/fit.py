"""Fit of the anomaly head: Gaussian distributions of normal images, weights of the distances, and the threshold."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.core.output_decoding import anomaly_outputs
from edgetl.train.heads.distances.modules import DistanceNetwork, Gaussian

# Variance that is added in all directions, relative to their mean variance. Rounding and quantization change directions of small variance
# the most. Patches: the covariance of many positions is known well. Images: there are fewer images than features.
PATCH_FLOOR, IMAGE_FLOOR = 0.03, 0.3
# Weight of the whole image relative to the patches, both in standard deviations of normal images.
IMAGE_WEIGHT = 2.0
# Score of the median normal image. The score of the threshold is 0.5.
MEDIAN_SCORE = 0.1
# Distance of the threshold's own image from the threshold, in outputs: it is normal, whatever the rounding of an engine.
MARGIN = 0.01


class Moments:
    """Mean and covariance of features that arrive in batches."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._sum = np.zeros(width)
        self._products = np.zeros((width, width))

    def add(self, features: NDArray[np.float32]) -> None:
        """Add features, float32 ``[n, width]``."""
        rows = features.astype(np.float64)
        self.count += len(rows)
        self._sum += rows.sum(axis=0)
        self._products += rows.T @ rows

    def fit(self, gaussian: Gaussian, floor: float) -> None:
        """Set the center and the axes of ``gaussian``. ``floor`` is relative to the mean variance."""
        mean = self._sum / self.count
        covariance = self._products / self.count - np.outer(mean, mean)
        least = floor * max(float(np.trace(covariance)) / len(mean), 1e-12)
        variances, axes = np.linalg.eigh(covariance)
        largest = np.argsort(-variances)[: gaussian.axes.shape[1]]
        weights = np.sqrt(1 / least - 1 / (np.maximum(variances[largest], 0) + least))
        gaussian.center.copy_(torch.from_numpy(mean))
        gaussian.axes.copy_(torch.from_numpy(axes[:, largest] * weights))
        gaussian.scale.fill_(1 / math.sqrt(least))


def fit_distributions(network: DistanceNetwork, features: Iterable[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
    """Fit the distributions of ``network`` to normal images.

    Args:
        network: detector whose distributions are set.
        features: patches and image features of batches of normal images, as ``AnomalyFeatures`` computes them.
    """
    spec = network.spec
    patches, images = Moments(spec.patch_width), Moments(spec.image_width)
    for patch, image in features:
        patches.add(patch.flatten(0, 1).cpu().numpy())
        if image is not None:
            images.add(image.cpu().numpy())
    with torch.no_grad():
        patches.fit(network.patch, PATCH_FLOOR)
        if network.image is not None:
            images.fit(network.image, IMAGE_FLOOR)


def choose_threshold(scores: NDArray[np.floating[Any]], false_alarms: float) -> tuple[float, float]:
    """Return the threshold for a rate of false alarms on normal images, and the rate that it can be expected to have.

    The threshold is the score of the rank ``(n + 1) (1 - false_alarms)`` in ascending order, rounded up: split conformal prediction (Bates
    et al. 2023, arXiv:2104.08279). The expected rate on new normal images is then at most ``false_alarms``. With fewer than
    ``1 / false_alarms - 1`` images there is no such rank. The threshold is then the highest score, and the expected rate is 1 / (n + 1).

    Args:
        scores: scores of normal images that did not fit the distributions, ``[n]``.
        false_alarms: rate of false alarms, above 0 and below 1.
    """
    n = len(scores)
    rank = min(n, math.ceil((n + 1) * (1 - false_alarms) - 1e-9))
    return float(np.sort(scores)[rank - 1]), (n + 1 - rank) / (n + 1)


def fit_weights(network: DistanceNetwork, distances: NDArray[np.float32], false_alarms: float) -> float:
    """Set the last layer of ``network``: weights of the distances, and the offset for which the threshold has the score 0.5.

    Args:
        network: network with fitted distributions.
        distances: distances of normal validation images, float32 ``[n, positions, 1 or 2]``.
        false_alarms: rate of false alarms, as for ``choose_threshold``.

    Returns:
        the expected rate of false alarms.
    """
    importance = np.array([1.0, IMAGE_WEIGHT])[: distances.shape[2]]
    spread = np.stack([anomaly_outputs(distances[:, :, index]) for index in range(distances.shape[2])]).std(axis=1)
    weights = importance / np.maximum(spread, 1e-6)
    sums = anomaly_outputs((distances @ weights).astype(np.float32))
    threshold, expected = choose_threshold(sums, false_alarms)
    # The unit of the scores is the distance from the median to the threshold.
    unit = max(threshold - float(np.median(sums)), 1e-6 * max(1.0, abs(threshold)))
    factor = math.log(1 / MEDIAN_SCORE - 1) / unit
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(weights[None] * factor))
        network.head.bias.fill_(-threshold * factor - MARGIN)
    return expected
