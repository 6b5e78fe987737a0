"""Paired bootstrap of accuracies over held-out images and repetitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.core.results import Proportion

DRAWS = 1000


def resample(trials: Sequence[NDArray[np.bool_]], *, seed: int = 0) -> NDArray[np.float64]:
    """Draw the accuracies of several models by a bootstrap over images and repetitions, float64 ``[DRAWS, models]``.

    A draw has the same images for all models, so that differences are paired. The repetitions of each model are drawn by themselves, as
    in the pigeonhole bootstrap (Owen 2007, doi:10.1214/07-AOAS122), which also covers the variation between repetitions.

    Args:
        trials: bool ``[repeats, n]`` for each model, true where a repetition predicts an image correctly. All have the same ``n`` images.
        seed: random seed of the draws.
    """
    rng = np.random.default_rng(seed)
    n = trials[0].shape[1]
    images = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
    columns = []
    for correct in trials:
        repeats = len(correct)
        weights = rng.multinomial(repeats, np.full(repeats, 1 / repeats), size=DRAWS) / repeats
        columns.append((images @ correct.T * weights).sum(axis=1))
    return np.stack(columns, axis=1)


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % percentile interval of bootstrap draws ``[DRAWS]``."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def accuracy_of(correct: NDArray[np.bool_], draws: NDArray[np.float64]) -> Proportion:
    """Return the mean accuracy of a model with its interval.

    Args:
        correct: bool ``[repeats, n]``.
        draws: accuracies of this model from ``resample``, ``[DRAWS]``.
    """
    low, high = interval(draws)
    return Proportion(value=float(correct.mean()), n=correct.shape[1], low=low, high=high)
