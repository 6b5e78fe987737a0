"""Batch size for waiting requests, measured when a bundle is loaded."""

from __future__ import annotations

import time

import numpy as np

from edgetl.runtime.predictor import Predictor

BATCH = 4
# Highest time per image in a batch, relative to the time of a single image. The margin covers the delay of the first request in a batch and
# the error of the measurement, a few percent.
MAX_RELATIVE_TIME = 0.8
_ROUNDS = 5
# Above this time per image, seconds, the overhead of a call is negligible, and the measurement would delay the start.
_MAX_SINGLE_S = 0.05


def best_batch(predictor: Predictor) -> int:
    """Return ``BATCH`` if its time per image is at most ``MAX_RELATIVE_TIME`` of the time of a single image, otherwise 1.

    Single images and batches are measured alternately, and their medians are compared. A change of the clock frequency thus affects both.
    A warm-up call precedes each measurement, because OpenVINO needs about a millisecond after a change of the input shape.
    """
    assert predictor.variant is not None
    shape = predictor.variant.input_shape(predictor.spec)
    dtype = np.uint8 if predictor.input_form == "uint8" else np.float32
    single_input, batch_input = np.zeros((1, *shape), dtype), np.zeros((BATCH, *shape), dtype)
    if _seconds(predictor, single_input) > _MAX_SINGLE_S:
        return 1
    _seconds(predictor, batch_input)
    pairs = [(_seconds(predictor, single_input), _seconds(predictor, batch_input) / BATCH) for _ in range(_ROUNDS)]
    single, batched = np.median(np.array(pairs), axis=0)
    return BATCH if batched <= MAX_RELATIVE_TIME * single else 1


def _seconds(predictor: Predictor, batch: np.ndarray) -> float:
    predictor.logits(batch)
    start = time.perf_counter()
    predictor.logits(batch)
    return time.perf_counter() - start
