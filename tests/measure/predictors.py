"""Predictors with an engine that takes a known time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgetl.core.preprocess import Batch, PreprocessSpec
from edgetl.runtime.predictor import Predictor

LABELS = ("a", "b")


class SleepingEngine:
    """Engine that sleeps before it returns logits. Every ``stall_every``-th run also sleeps for ``stall_s`` seconds."""

    def __init__(self, sleep: Callable[[float], object], seconds: float, *, stall_every: int = 0, stall_s: float = 1.0) -> None:
        self._sleep, self._seconds, self._stall = sleep, seconds, (stall_every, stall_s)
        self.batches: list[int] = []

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        """Return logits after the sleep."""
        self.batches.append(len(batch))
        every, stall_s = self._stall
        self._sleep(self._seconds + (stall_s if every and len(self.batches) % every == 0 else 0.0))
        return np.zeros((len(batch), len(LABELS)), np.float32)


def sleeping_predictor(engine: SleepingEngine) -> Predictor:
    """Return a predictor for images of 8 x 8 pixels."""
    return Predictor(engine, LABELS, PreprocessSpec(input_size=(8, 8), crop_pct=1.0))
