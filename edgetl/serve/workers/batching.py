"""Does computing several requests together pay, here, with this network? Measured when a bundle is loaded."""

from __future__ import annotations

import time

import numpy as np

from edgetl.runtime.predictor import Predictor

BATCH = 4
# An image in a batch must cost this share of what it costs alone, or less: batches make the first request wait for the last, and the
# measurement itself is only good to a few per cent.
WORTH = 0.8
_ROUNDS = 5
# A network slower than this has nothing to gain from sharing what a call costs, and its measurement would delay the start.
_SLOW_S = 0.05


def best_batch(predictor: Predictor) -> int:
    """``BATCH`` where an image in a batch of that many costs at most ``WORTH`` of one alone, else 1.

    The times of one and of many are taken in turn, and their medians compared, so that a machine that grows slower does not decide. Before
    each is a call that is not timed: OpenVINO takes a millisecond to get used to another shape.
    """
    assert predictor.variant is not None
    shape = predictor.variant.input_shape(predictor.spec)
    dtype = np.uint8 if predictor.input_form == "uint8" else np.float32
    one, many = np.zeros((1, *shape), dtype), np.zeros((BATCH, *shape), dtype)
    if _seconds(predictor, one) > _SLOW_S:
        return 1
    _seconds(predictor, many)
    pairs = [(_seconds(predictor, one), _seconds(predictor, many) / BATCH) for _ in range(_ROUNDS)]
    alone, shared = np.median(np.array(pairs), axis=0)
    return BATCH if shared <= WORTH * alone else 1


def _seconds(predictor: Predictor, batch: np.ndarray) -> float:
    predictor.logits(batch)
    begun = time.perf_counter()
    predictor.logits(batch)
    return time.perf_counter() - begun
