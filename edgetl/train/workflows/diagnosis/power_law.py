"""Learning curve as an inverse power law: ``accuracy(n) = limit - scale * n ** -exponent``, fitted by least squares.

The form describes the error of many learners over the number of labels (Hestness et al. 2017, arXiv:1712.00409). It is not exact, and an
extrapolation can be far off (Viering and Loog 2021, arXiv:2103.10948). Intervals come from fits to bootstrap draws of the accuracies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Exponents of the fit. Published learning curves have 0.05 to 1.
EXPONENTS = np.geomspace(0.05, 2.0, 60)


def fit_power_law(labels: NDArray[np.float64], accuracy: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the power law by least squares, and return its accuracy at other numbers of labels.

    The fit has a decreasing error (``scale >= 0``) and a limit of at most 1. The exponent is the best of a grid.

    Args:
        labels: numbers of labels, ``[points]``.
        accuracy: accuracies, 0..1, ``[fits, points]``. Each row is one fit.
        at: numbers of labels to predict, ``[predictions]``.

    Returns:
        accuracies, 0..1, ``[fits, predictions]``.
    """
    # Relative to the largest number, so that the terms of all exponents have the same size.
    terms = (labels / labels.max()) ** -EXPONENTS[:, None]
    centered = terms - terms.mean(axis=1, keepdims=True)
    mean = accuracy.mean(axis=1)
    scale = np.maximum(-(accuracy @ centered.T) / (centered**2).sum(axis=1), 0.0)
    limit = mean[:, None] + scale * terms.mean(axis=1)
    # Above 1, the best fit has the limit 1, and a line through it.
    bounded = ((1.0 - accuracy) @ terms.T) / (terms**2).sum(axis=1)
    scale, limit = np.where(limit > 1, bounded, scale), np.minimum(limit, 1.0)
    errors = ((limit[:, :, None] - scale[:, :, None] * terms - accuracy[:, None, :]) ** 2).sum(axis=2)
    rows, best = np.arange(len(accuracy)), errors.argmin(axis=1)
    powers = (at / labels.max()) ** -EXPONENTS[best][:, None]
    return np.clip(limit[rows, best][:, None] - scale[rows, best][:, None] * powers, 0.0, 1.0)
