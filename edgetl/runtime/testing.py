"""An engine for tests, ours and those of applications: no model file, no inference library."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgetl.core.preprocess import Batch


class FixedEngine:
    """Answers every image with the same logits."""

    def __init__(self, logits: list[float]) -> None:
        self.logits = np.array(logits, np.float32)

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        """The fixed logits, once for each image: float32 ``[batch, classes]``."""
        return np.tile(self.logits, (len(batch), 1))
