"""Engine for tests of edgetl and of applications. It needs no model file and no inference library."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgetl.core.preprocess import Batch


class FixedEngine:
    """Engine that returns the same logits for every image.

    Args:
        logits: one logit for each class.
    """

    def __init__(self, logits: list[float]) -> None:
        self.logits = np.array(logits, np.float32)

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        """Return the fixed logits for each image, float32 ``[batch, classes]``."""
        return np.tile(self.logits, (len(batch), 1))
