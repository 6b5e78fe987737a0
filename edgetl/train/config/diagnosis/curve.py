"""Learning curve (``edgetl curve``): its options and its result."""

from __future__ import annotations

from functools import partial
from typing import Literal

from edgetl.core.config import StrictModel
from edgetl.core.options import COMMON, option_field
from edgetl.core.results import Proportion
from edgetl.data.scan_notes import ScanNote

# Repetitions by default: of probes, which take seconds, and of trainings.
PROBE_REPEATS, TRAINING_REPEATS = 5, 1

_common = partial(option_field, panel=COMMON)


class CurveConfig(StrictModel):
    """Options of ``curve`` that are not training options."""

    fine_tune: bool = _common(
        False, "Train a network for each point in place of a probe on frozen features. Takes at least eight times as long as a training."
    )
    images: int = _common(2000, "Largest number of training images for the probes, 40..20000. --fine-tune uses all.", ge=40, le=20000)
    repeats: int | None = _common(None, "Random subsets of each size, 1..20. Default: 5, and 1 with --fine-tune.", ge=1, le=20)


class Point(StrictModel):
    """Point of a learning curve.

    Attributes:
        labels: number of labeled training images.
        fraction: the same as a fraction of the training images, 0..1.
        repeats: number of random subsets of this size.
        accuracy: mean accuracy. The interval covers held-out images and subsets.
    """

    labels: int
    fraction: float
    repeats: int
    accuracy: Proportion


class Forecast(StrictModel):
    """Extrapolated accuracy.

    Attributes:
        labels: number of labeled training images.
        accuracy: accuracy of the fitted power law, 0..1.
        low, high: limits of the 95 % interval (bootstrap over held-out images and subsets).
    """

    labels: int
    accuracy: float
    low: float
    high: float


class Backtest(StrictModel):
    """Check of the extrapolation: the accuracy with all labels, predicted from the points with at most half of them.

    Attributes:
        forecast: predicted accuracy with all labels.
        measured: measured accuracy with all labels.
        inside: true if the measured accuracy is in the interval.
    """

    forecast: Forecast
    measured: float
    inside: bool


class Equivalence(StrictModel):
    """Data-equivalence factor of pretraining: number of labels without pretraining, divided by that with it, for the same accuracy.

    Attributes:
        factor: the factor. Above 1, pretraining saves labels.
        low, high: limits of the 95 % interval (bootstrap over held-out images and subsets).
        bound: ``at least`` if the pretrained curve is above the other at its smallest number of labels, ``at most`` in the opposite case,
            ``equal`` if the factor is inside the measured range.
        labels_pretrained, labels_random: numbers of labels with equal accuracy.
        accuracy: this accuracy, 0..1.
    """

    factor: float
    low: float
    high: float
    bound: Literal["equal", "at least", "at most"]
    labels_pretrained: float
    labels_random: float
    accuracy: float


class CurveReport(StrictModel):
    """Result of ``curve``.

    Attributes:
        data: folder of the images.
        backbone: name of the backbone.
        method: ``probe`` (linear probe on frozen features) or ``fine-tuned``.
        steps: optimizer steps of each training. 0 for probes.
        held_out: number of images that measure the accuracies.
        pretrained: learning curve of the pretrained network.
        random: learning curve of the same network with random weights, trained by the same method and steps.
        forecasts: extrapolation of the pretrained curve.
        backtest: check of the extrapolation on the measured curve.
        equivalence: data-equivalence factor of pretraining.
        seconds: duration, s.
        notes: notes of the scan of the image folder.
    """

    schema_version: Literal[1] = 1
    data: str
    backbone: str
    method: Literal["probe", "fine-tuned"]
    steps: int
    held_out: int
    pretrained: tuple[Point, ...]
    random: tuple[Point, ...]
    forecasts: tuple[Forecast, ...]
    backtest: Backtest
    equivalence: Equivalence
    seconds: float
    notes: tuple[ScanNote, ...] = ()
