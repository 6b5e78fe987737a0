"""Score correlation of an anomaly detector of reduced precision with the trained model, without labeled anomalies.

Quantization changes the anomaly scores in two ways. Noise changes the order of the normal images. Ranges that are measured on normal images
clip the activations of anomalies, which lowers their scores. CutPaste shows little of the second, because a piece of a normal image has
normal colors. Copies with one small rectangle of a random color show it. Larger rectangles show less: their scores vary so much that a
loss of the small ones hardly lowers the correlation.

Limit of the correlation: with Gaussian scores of variance 1 and a separation d of the means, the AUROC is Phi(d / sqrt(2)). Noise of
variance v makes it Phi(d / sqrt(2 + 2 v)), and the correlation with the scores without noise is 1 / sqrt(1 + v). An AUROC of 0.9 drops by
0.01 at a correlation of 0.957.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgetl.core.output_decoding import anomaly_outputs
from edgetl.data.folder import Sample, SyntheticDefect
from edgetl.data.loading import PixelSet, stratified

MIN_CORRELATION = 0.957
# Number of copies with confetti noise. The standard error of a correlation of 0.96 is then 0.008.
CONFETTI_IMAGES = 100


@dataclass(frozen=True)
class ConfettiSet:
    """Copies of normal validation images with confetti noise, and the trained model's heat maps for them ``[n, positions]``."""

    images: PixelSet
    trained: NDArray[np.float32]


def choose_confetti(validation: Sequence[Sample]) -> list[Sample]:
    """Return ``CONFETTI_IMAGES`` copies, or slightly more, of the normal images of ``validation``, with small confetti."""
    normal = stratified([sample for sample in validation if sample.label == 0], CONFETTI_IMAGES)
    copies = range(math.ceil(CONFETTI_IMAGES / len(normal)))
    return [replace(sample, label=1, synthetic=SyntheticDefect("small-confetti", copy)) for copy in copies for sample in normal]


def score_correlation(trained: NDArray[np.float32], exported: NDArray[np.float32]) -> float:
    """Return the Pearson correlation of the image scores of two models' heat maps ``[n, positions]``. 0 for scores that do not vary."""
    one, other = (anomaly_outputs(outputs).astype(np.float64) for outputs in (trained, exported))
    one, other = one - one.mean(), other - other.mean()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if 0 < lengths < math.inf else 0.0


def correlation_reason(normal: float, confetti: float) -> str:
    """Return the reason for rejecting a file by its score correlation on normal images and on copies with confetti; empty if it passes."""
    if min(normal, confetti) >= MIN_CORRELATION:
        return ""
    name, value = ("normal images", normal) if normal < confetti else ("normal images with synthetic confetti noise", confetti)
    return (
        f"the correlation of the anomaly scores with the trained model's is {value:.3f} on {name} (limit {MIN_CORRELATION:g}, at which an "
        f"AUROC of 0.9 drops by 0.01). Use a higher precision"
    )
