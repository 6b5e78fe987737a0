"""Learning curve (``edgetl curve``): accuracy over the number of labels, its extrapolation, and the value of pretraining in labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.files.names import printable
from edgetl.core.progress import Progress, silent
from edgetl.errors import DataError
from edgetl.train.config.diagnosis.curve import (
    PROBE_REPEATS,
    TRAINING_REPEATS,
    Backtest,
    CurveConfig,
    CurveReport,
    Equivalence,
    Forecast,
    Point,
)
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.diagnosis.power_law import fit_power_law
from edgetl.train.workflows.diagnosis.resampling import accuracy_of, interval, resample
from edgetl.train.workflows.diagnosis.trials import (
    Division,
    announce_trainings,
    divide,
    frozen_features,
    nested_order,
    plan_training,
    probe,
    train_network,
    training_config,
)

# Fractions of the training images. Probes are cheap, and more points make the extrapolation more precise.
FRACTIONS = (0.1, 0.25, 0.5, 1.0)
PROBE_FRACTIONS = (0.05, 0.1, 0.18, 0.25, 0.35, 0.5, 1.0)
# Multiples of the number of training images for which the accuracy is extrapolated.
MULTIPLES = (2, 4)
# The accuracy with all labels is also predicted from the points up to this fraction, to check the extrapolation.
BACKTEST_FRACTION = 0.5
# Points that the power law, with its three parameters, needs.
LEAST_POINTS = 3
LEAST_PER_CLASS = 2


@dataclass(frozen=True)
class _Curve:
    """Measured learning curve.

    Attributes:
        labels: numbers of labeled training images, ascending, ``[points]``.
        correct: bool ``[repeats, n]`` for each point, true where a held-out image is predicted correctly.
        draws: bootstrap draws of the accuracies, float64 ``[draws, points]``.
    """

    labels: NDArray[np.float64]
    correct: Sequence[NDArray[np.bool_]]
    draws: NDArray[np.float64]

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean accuracies, float64 ``[points]``."""
        return np.array([item.mean() for item in self.correct])


def learning_curve(data: Path, config: TrainConfig, options: CurveConfig, *, progress: Progress = silent) -> CurveReport:
    """Measure the accuracy over the number of labels, with pretrained and with random weights, and extrapolate it.

    By default each point is the mean of linear probes on frozen features of random subsets. With ``options.fine_tune`` each point is a
    training, and all trainings have equal steps.

    Args:
        data: image folder.
        config: training options.
        options: kind and number of the trials.
        progress: called for each step of long operations.

    Raises:
        ConfigError: options conflict, or the task is not classification.
        DataError: the folder cannot be used, or has too few training images for a curve.
        BackboneError: the backbone cannot be found or loaded.
        LicenseError: the license of its weights does not fit ``license_policy``.
        TrainingError: a training diverged.
    """
    started = time.monotonic()
    division = divide(data, config, images=None if options.fine_tune else options.images, progress=progress)
    _check_points(division, FRACTIONS if options.fine_tune else PROBE_FRACTIONS)
    measure = _trained_curves if options.fine_tune else _probe_curves
    measured, steps = measure(division, config, options, progress)
    pretrained, random = _with_draws(measured, config.run.seed)
    total = len(division.train)
    return CurveReport(
        data=printable(data),
        backbone=config.backbone.name,
        method="fine-tuned" if options.fine_tune else "probe",
        steps=steps,
        held_out=len(division.held_out),
        pretrained=_points(pretrained, total),
        random=_points(random, total),
        forecasts=_extrapolate(pretrained, len(pretrained.labels), [multiple * total for multiple in MULTIPLES]),
        backtest=_backtest(pretrained, total),
        equivalence=_equivalence(pretrained, random),
        seconds=round(time.monotonic() - started, 1),
        notes=division.splits.notes,
    )


# Correct predictions of a curve, bool ``[repeats, n]``, by the number of labels.
_Measured = dict[int, NDArray[np.bool_]]


def _with_draws(measured: Sequence[_Measured], seed: int) -> list[_Curve]:
    """Add bootstrap draws to curves. All curves have the same held-out images in each draw."""
    draws = resample([correct for points in measured for correct in points.values()], seed=seed)
    parts = np.split(draws, np.cumsum([len(points) for points in measured])[:-1], axis=1)
    return [_Curve(np.array(list(points), np.float64), list(points.values()), part) for points, part in zip(measured, parts, strict=True)]


def _sizes(division: Division, fractions: Sequence[float]) -> list[int]:
    """Return the numbers of labels of a curve. Numbers with fewer than two images per class are left out."""
    total, least = len(division.train), LEAST_PER_CLASS * len(division.splits.folder.labels)
    return [round(fraction * total) for fraction in fractions if round(fraction * total) >= least]


def _check_points(division: Division, fractions: Sequence[float]) -> None:
    """Check that the curve has enough points before the last one to predict it."""
    if len(_sizes(division, fractions)) <= LEAST_POINTS:
        total = len(division.train)
        raise DataError(
            f"{printable(division.splits.folder.root)} has {total} training images of {len(division.splits.folder.labels)} classes. A "
            f"learning curve needs {LEAST_POINTS} sizes up to {BACKTEST_FRACTION:.0%} of them, each with {LEAST_PER_CLASS} images per "
            f"class. Add images."
        )


def _subset(division: Division, size: int, *, seed: int, repeat: int) -> NDArray[np.int64]:
    """Return the rows of a random subset of the training images, with the classes in proportion."""
    return nested_order(division.train, np.random.default_rng([seed, repeat, size]))[:size]


def _probe_curves(
    division: Division, config: TrainConfig, options: CurveConfig, progress: Progress
) -> tuple[tuple[_Measured, _Measured], int]:
    seed, repeats = config.run.seed, options.repeats or PROBE_REPEATS
    found: list[_Measured] = []
    for pretrained, fractions in ((True, PROBE_FRACTIONS), (False, FRACTIONS)):
        sizes = _sizes(division, fractions)
        features = frozen_features(division, config, pretrained=pretrained, seed=seed, progress=progress)
        curve: _Measured = {}
        for done, size in enumerate(sizes):
            progress(f"fitting probes on {'pretrained' if pretrained else 'random'} features", done, len(sizes))
            # All images have one subset.
            count = repeats if size < len(division.train) else 1
            subsets = [_subset(division, size, seed=seed, repeat=repeat) for repeat in range(count)]
            curve[size] = np.stack([probe(division, features, rows, seed=seed) for rows in subsets])
        found.append(curve)
    return (found[0], found[1]), 0


def _trained_curves(
    division: Division, config: TrainConfig, options: CurveConfig, progress: Progress
) -> tuple[tuple[_Measured, _Measured], int]:
    sizes, repeats = _sizes(division, FRACTIONS), options.repeats or TRAINING_REPEATS
    plans = plan_training(division.splits, config)
    announce_trainings(division, config, plans, trainings=repeats * len(sizes))
    found: tuple[_Measured, _Measured] = ({}, {})
    for size in sizes:
        for curve, plan, pretrained in zip(found, plans, (True, False), strict=True):
            correct = []
            for repeat in range(repeats):
                rows = _subset(division, size, seed=config.run.seed, repeat=repeat)
                chosen = training_config(config, pretrained=pretrained, seed=config.run.seed + repeat)
                correct.append(train_network(division, rows, chosen, plan, progress=progress)[1])
            curve[size] = np.stack(correct)
    return found, plans[0].steps


def _points(curve: _Curve, total: int) -> tuple[Point, ...]:
    return tuple(
        Point(labels=int(labels), fraction=labels / total, repeats=len(correct), accuracy=accuracy_of(correct, draws))
        for labels, correct, draws in zip(curve.labels, curve.correct, curve.draws.T, strict=True)
    )


def _extrapolate(curve: _Curve, points: int, at: Sequence[int]) -> tuple[Forecast, ...]:
    """Fit the power law to the first ``points`` points, and return its accuracy at the numbers of labels ``at``."""
    labels, wanted = curve.labels[:points], np.array(at, np.float64)
    fitted = fit_power_law(labels, curve.means[None, :points], wanted)[0]
    draws = fit_power_law(labels, curve.draws[:, :points], wanted)
    found = []
    for place, count in enumerate(at):
        low, high = interval(draws[:, place])
        found.append(Forecast(labels=count, accuracy=float(fitted[place]), low=low, high=high))
    return tuple(found)


def _backtest(curve: _Curve, total: int) -> Backtest:
    few = int((curve.labels <= BACKTEST_FRACTION * total + 1).sum())
    (forecast,) = _extrapolate(curve, few, [total])
    measured = float(curve.means[-1])
    return Backtest(forecast=forecast, measured=measured, inside=forecast.low <= measured <= forecast.high)


def _equivalence(pretrained: _Curve, random: _Curve) -> Equivalence:
    """Return the data-equivalence factor: labels without pretraining relative to labels with it, for the same accuracy.

    The accuracy is that of random weights with all labels, or that of the pretrained network if it is lower. No curve is extrapolated.
    Hernandez et al. 2021 (arXiv:2102.01293) express the value of pretraining in this way.
    """
    ours, theirs = labels_at_equal_accuracy(pretrained.labels, pretrained.means, random.labels, random.means)
    draws = [
        labels_at_equal_accuracy(pretrained.labels, first, random.labels, second)
        for first, second in zip(pretrained.draws, random.draws, strict=True)
    ]
    low, high = interval(np.array([second / first for first, second in draws]))
    smallest = pretrained.means[0] >= random.means[-1], random.means[0] >= pretrained.means[-1]
    return Equivalence(
        factor=theirs / ours,
        low=low,
        high=high,
        bound="at least" if smallest[0] else "at most" if smallest[1] else "equal",
        labels_pretrained=ours,
        labels_random=theirs,
        accuracy=float(min(pretrained.means[-1], random.means[-1])),
    )


def labels_at_equal_accuracy(
    labels: NDArray[np.float64], accuracy: NDArray[np.float64], other_labels: NDArray[np.float64], other_accuracy: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the numbers of labels with which two curves have equal accuracy: the lower end of the two curves.

    The better curve is interpolated over the logarithm of the labels. Below its first point, its number of labels is that of the point.
    """
    if accuracy[-1] < other_accuracy[-1]:
        second, first = labels_at_equal_accuracy(other_labels, other_accuracy, labels, accuracy)
        return first, second
    rising = np.maximum.accumulate(accuracy)
    # A tiny slope makes equal neighbors distinct for the interpolation: the smallest number of labels counts.
    place = np.interp(other_accuracy[-1], rising + 1e-9 * np.arange(len(rising)), np.log(labels))
    return float(np.exp(place)), float(other_labels[-1])
