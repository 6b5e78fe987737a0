"""Monitoring reference: scores and image statistics of the validation images, which a device compares with the images that it receives.

The export computes the reference, and the manifest contains it. Each distribution is stored as quantiles, so its size does not depend on
the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.preprocess import Batch, PreprocessSpec
from edgetl.core.results import Prediction
from edgetl.core.tasks import OutputDecoding

# Statistics of the preprocessed pixels, in the order of ``image_statistics``.
STATISTICS = ("brightness", "contrast", "red", "green", "blue", "saturation", "sharpness")
# Fewest validation images of a reference. With fewer, only a complete change of the images would be significant.
LEAST_IMAGES = 50
# Labels with score quantiles: the most frequent ones. More labels would enlarge the manifest, and weaken each single test.
MAX_SCORES = 32
CONFIDENCE_BINS = 10
# Resolution of scores. Variants of other precisions give other digits below it, which change the order of scores near 0 and 1.
SCORE_STEP = 0.01
# Resolution of image statistics. Smaller differences are not relevant, and a constant statistic (gray images) has no rounding errors.
STATISTIC_STEP = 0.001
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601

Quantiles: TypeAlias = Annotated[tuple[float, ...], Field(min_length=41, max_length=41)]
LEVELS = np.linspace(0, 1, 41)


class Reference(StrictModel):
    """Monitoring reference: distributions of predictions and image statistics on the validation images.

    Each distribution is a list of 41 quantiles, at the levels 0, 0.025, … 1. A quantile is the smallest value whose cumulative frequency
    reaches the level.

    Attributes:
        n: number of validation images.
        classes: number of images by predicted class: the class (label) with the highest score, or the ordinal level. Empty for regression.
        confidence: number of images by ``Prediction.score``, in 10 equal ranges of 0..1. Empty for regression and ordinal.
        scores: quantiles of the score of each label, in multiples of 0.01; at most 32 labels, the most frequent ones. Regression and
            ordinal: quantiles of the output, in the unit of the values.
        images: quantiles of the image statistics (``image_statistics``). A device ignores statistics that it does not know.
    """

    n: int = Field(ge=LEAST_IMAGES)
    classes: dict[str, Annotated[int, Field(ge=0)]]
    confidence: tuple[Annotated[int, Field(ge=0)], ...] = ()
    scores: dict[str, Quantiles]
    images: dict[str, Quantiles]

    def problem(self, decoding: OutputDecoding) -> str | None:
        """Return the reason why the reference is invalid for a model, or none."""
        scored = decoding.has_scores
        if tuple(self.classes) != (decoding.labels if scored else decoding.level_names if decoding.task == "ordinal" else ()):
            return "its classes are not those of the model"
        if sum(self.classes.values()) != (0 if decoding.task == "regression" else self.n):
            return f"its classes do not have {self.n} images in total"
        if len(self.confidence) != (CONFIDENCE_BINS if scored else 0) or sum(self.confidence) != (self.n if scored else 0):
            return f"its confidence histogram does not have {CONFIDENCE_BINS} ranges with {self.n} images in total"
        if not self.scores or not set(self.scores) <= set(decoding.labels):
            return "its scores are not those of the model's labels"
        if any(list(values) != sorted(values) for values in (*self.scores.values(), *self.images.values())):
            return "its quantiles are not in ascending order"
        return None


def image_statistics(batch: Batch, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Return statistics of preprocessed images, float32 ``[n, 7]``, in the order of ``STATISTICS``.

    They change if a camera is dark, out of focus, or has another white balance, even if the predictions do not change. Pixels are on a
    scale of 0..1.

    - ``brightness``, ``contrast``: mean and standard deviation of the luminance.
    - ``red``, ``green``, ``blue``: ratio of the channel's mean to the sum of the three means.
    - ``saturation``: mean difference between the largest and the smallest channel of a pixel.
    - ``sharpness``: mean absolute value of the luminance's Laplacian (4 neighbors).

    Args:
        batch: input of the network: normalized float32 ``[n, 3, H, W]``, or pixels uint8 ``[n, H, W, 3]``.
        spec: preprocessing settings of the batch.
    """
    return np.array([_statistics(image, spec) for image in batch], np.float32).reshape(len(batch), len(STATISTICS))


def _statistics(image: NDArray[np.float32] | NDArray[np.uint8], spec: PreprocessSpec) -> tuple[float, ...]:
    if image.dtype == np.uint8:
        red, green, blue = image.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    else:
        red, green, blue = image * np.array(spec.std, np.float32)[:, None, None] + np.array(spec.mean, np.float32)[:, None, None]
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
    saturation = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    means = [float(plane.mean()) for plane in (red, green, blue)]
    ratios = [mean / max(sum(means), 1e-6) for mean in means]
    return float(luma.mean()), float(luma.std()), *ratios, float(saturation.mean()), float(np.abs(laplacian).mean())


def class_of(prediction: Prediction, decoding: OutputDecoding) -> str | None:
    """Return the predicted class as ``Reference.classes`` counts it; none for a regression, and for a new class of a gallery."""
    if decoding.task == "regression":
        return None
    if prediction.value is not None:
        return f"{prediction.value:.0f}"
    best = int(np.argmax(prediction.scores))
    if best >= len(decoding.labels):
        return None  # a class that a gallery added
    return prediction.label or decoding.labels[best]  # an unknown image counts as its class


def confidence_bin(score: float) -> int:
    """Return the index of the range of ``Reference.confidence`` that contains a score."""
    return min(CONFIDENCE_BINS - 1, max(0, int(score * CONFIDENCE_BINS)))


def rounded_scores(scores: Sequence[float], decoding: OutputDecoding) -> NDArray[np.float64]:
    """Return scores, float64 ``[labels]``, in the resolution of the reference: 0.01, or 0.01 of the spread for outputs in a unit."""
    return _rounded(scores, SCORE_STEP * decoding.decision_rule.spread)


def rounded_statistics(statistics: Sequence[float] | NDArray[np.float32]) -> NDArray[np.float64]:
    """Return image statistics in the resolution of the reference, 0.001."""
    return _rounded(statistics, STATISTIC_STEP)


def describe_validation(predictions: Sequence[Prediction], statistics: NDArray[np.float32], decoding: OutputDecoding) -> Reference | None:
    """Return the reference for the validation images; none for fewer than ``LEAST_IMAGES`` images.

    Args:
        predictions: predictions of the images.
        statistics: statistics of the same images, float32 ``[n, 7]`` (``image_statistics``).
        decoding: task, labels and decision rule.
    """
    if len(predictions) < LEAST_IMAGES:
        return None
    scored = decoding.has_scores
    found = [name for prediction in predictions if (name := class_of(prediction, decoding)) is not None]
    names = () if decoding.task == "regression" else decoding.labels if scored else decoding.level_names
    classes = {name: found.count(name) for name in names}
    frequent = sorted(range(len(decoding.labels)), key=lambda index: -classes.get(decoding.labels[index], 0))[:MAX_SCORES]
    bins = [confidence_bin(prediction.score) for prediction in predictions]
    scores = np.array([rounded_scores(prediction.scores, decoding) for prediction in predictions])
    return Reference(
        n=len(predictions),
        classes=classes,
        confidence=tuple(bins.count(index) for index in range(CONFIDENCE_BINS)) if scored else (),
        scores={decoding.labels[index]: _quantiles(scores[:, index]) for index in sorted(frequent)},
        images={name: _quantiles(rounded_statistics(column)) for name, column in zip(STATISTICS, statistics.T, strict=True)},
    )


def _rounded(values: Sequence[float] | NDArray[np.float32], step: float) -> NDArray[np.float64]:
    # 12 digits: a multiple of the step is the same number in the manifest and on the device.
    return np.array([float(f"{round(value / step) * step:.12g}") for value in np.asarray(values, np.float64).tolist()])


def _quantiles(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.quantile(values, LEVELS, method="inverted_cdf").tolist())
