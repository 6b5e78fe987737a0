"""Calibration of scores on validation images: temperature scaling, and the threshold of unknown images.

The temperature is one number that divides the outputs before the softmax or sigmoid (Guo et al. 2017, "On Calibration of Modern Neural
Networks", arXiv:1706.04599). It does not change the order of the classes, and therefore not the accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config import StrictModel
from edgetl.core.metrics import evaluate_scores
from edgetl.core.output_decoding import scores_of
from edgetl.core.results import Reliability
from edgetl.core.tasks import DecisionRule, OutputDecoding, Task
from edgetl.train.config.options import CalibrationConfig

# Fewest validation images for a temperature or a threshold by precision.
LEAST_IMAGES = 50
# Range of the temperature. Trained networks need about 0.3 (strong label smoothing) to 5 (overfitting).
LOWEST, HIGHEST = 0.05, 20.0
# Fewest validation images above a threshold. The precision of fewer images is mostly chance.
LEAST_KNOWN = 20


class CalibrationRecord(StrictModel):
    """Record of a calibration. The figures after it are part of the evaluations.

    Attributes:
        n: number of validation images.
        validation_before: calibration of the uncalibrated scores on the validation images.
        test_before: the same on the test images. None without test images.
        target_precision: requested precision of the labels. None if the threshold of unknown images was given, or none was requested.
        notices: reasons why a requested temperature or threshold was not set, as sentences.
    """

    n: int
    validation_before: Reliability
    test_before: Reliability | None
    target_precision: float | None = None
    notices: tuple[str, ...] = ()


def calibration_conflicts(config: CalibrationConfig, task: Task) -> Iterator[str]:
    """Yield a message for each conflict of calibration options with each other or the task."""
    rejection = [f"--{name}" for name in ("target-precision", "reject-below") if getattr(config, name.replace("-", "_")) is not None]
    if len(rejection) > 1:
        yield f"{' and '.join(rejection)} cannot be combined. Remove one of them"
    if config.calibrate and task in ("regression", "ordinal", "anomaly"):
        yield f"calibration is only for classification and multi-label tasks, not {task}, whose outputs are not probabilities"
    if rejection and task != "classification":
        yield f"{' and '.join(rejection)} is only for classification, not {task}. Remove it"


def calibrate(
    decoding: OutputDecoding, truth: NDArray[Any], outputs: NDArray[np.float32], config: CalibrationConfig, *, validation: int
) -> tuple[OutputDecoding, CalibrationRecord]:
    """Choose the temperature and the threshold of unknown images on validation images.

    Args:
        decoding: decoding to calibrate. Its earlier temperature and threshold are replaced.
        truth: true labels, as for ``edgetl.core.metrics.evaluate``.
        outputs: float32 ``[n, labels]``, outputs for the same images.
        config: temperature, target precision or threshold.
        validation: number of validation images, the first rows. The others are test images, which choose nothing.

    Returns:
        The decoding with the temperature and the threshold, and the record.
    """
    notices = []
    plain = _rejecting(decoding.uncalibrated, config.reject_below or 0.0)
    result, known, found = plain, truth[:validation], outputs[:validation]
    if config.calibrate:
        temperature, notice = choose_temperature(plain, known, found)
        result = replace(plain, decision_rule=plain.decision_rule.with_temperature(temperature))
        notices += [notice] if notice else []
    if config.target_precision is not None:
        threshold, notice = choose_threshold(result, known, found, config.target_precision)
        result = _rejecting(result, threshold)
        notices += [notice] if notice else []
    record = CalibrationRecord(
        n=validation,
        validation_before=evaluate_scores(plain, known, found),
        test_before=evaluate_scores(plain, truth[validation:], outputs[validation:]) if len(truth) > validation else None,
        target_precision=config.target_precision,
        notices=tuple(notices),
    )
    return result, record


def choose_temperature(decoding: OutputDecoding, truth: NDArray[Any], outputs: NDArray[np.float32]) -> tuple[float, str]:
    """Choose the temperature with the lowest negative log-likelihood. Arguments as for ``calibrate``.

    Returns:
        The temperature, and an empty text. If the images do not determine it: 1, and the reason as a sentence.
    """
    if len(outputs) < LEAST_IMAGES:
        return 1.0, f"{len(outputs)} images are too few to calibrate scores (at least {LEAST_IMAGES}): the temperature stays 1."
    known = truth[:, None] == np.arange(outputs.shape[1]) if decoding.task == "classification" else truth > 0

    def slope(log_factor: float) -> float:
        """Return the derivative of the log-likelihood loss by the factor of the outputs, 1 / temperature."""
        scaled = replace(decoding, decision_rule=DecisionRule(temperature=float(np.exp(-log_factor))))
        return float(((scores_of(scaled, outputs) - known) * outputs).mean(dtype=np.float64))

    # The loss is convex in the factor: its slope has at most one zero.
    low, high = -np.log(HIGHEST), -np.log(LOWEST)
    if slope(high) <= 0:  # 0: the scores are 0 and 1 within the rounding
        return 1.0, (
            f"the {len(outputs)} images do not limit the scores, because their predictions have almost no errors: the "
            f"temperature stays 1. Add images to calibrate."
        )
    if slope(low) > 0:
        return 1.0, f"the outputs do not predict the labels of the {len(outputs)} images: the temperature stays 1."
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2)), ""


def choose_threshold(
    decoding: OutputDecoding, truth: NDArray[np.int64], outputs: NDArray[np.float32], target_precision: float
) -> tuple[float, str]:
    """Choose the smallest threshold of unknown images whose precision on the images is at least ``target_precision``.

    This is selective classification by the highest score (Geifman and El-Yaniv 2017, arXiv:1705.08500). The other arguments are those of
    ``calibrate``.

    Returns:
        The threshold, and an empty text. Without a suitable threshold, or if none is needed: 0, and the reason as a sentence.
    """
    if len(outputs) < LEAST_IMAGES:
        return 0.0, f"{len(outputs)} images are too few to choose a threshold (at least {LEAST_IMAGES}): no image is rejected."
    scores = scores_of(decoding, outputs).max(axis=1).astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order], (outputs.argmax(axis=1) == truth)[order]
    count = np.arange(1, len(ranked) + 1)
    precision = np.cumsum(right) / count
    if precision[-1] >= target_precision:
        return 0.0, f"the validation precision is {precision[-1]:.4f} without a threshold: no image is rejected."
    # A threshold lies between two different scores.
    possible = (count >= LEAST_KNOWN) & np.append(ranked[1:] < ranked[:-1], False)
    suitable = np.flatnonzero(possible & (precision >= target_precision))
    if not len(suitable):
        best = float(precision[possible].max(initial=0.0))
        return 0.0, (
            f"no threshold reaches the precision {target_precision:g} in the validation (highest: {best:.4f}, with at least "
            f"{LEAST_KNOWN} images above the threshold): no image is rejected. Lower --target-precision, or add images."
        )
    last = int(suitable[-1])
    return float((ranked[last] + ranked[last + 1]) / 2), ""


def _rejecting(decoding: OutputDecoding, below: float) -> OutputDecoding:
    return replace(decoding, decision_rule=decoding.decision_rule.model_copy(update={"reject_below": below}))
