"""System under test of a scenario, and the result of its queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.measure.config import Part
from edgetl.runtime.predictor import MAX_BATCH, Predictor

# Seeds of MLPerf Inference 5.1 to 6.1 (mlcommons/inference, loadgen/mlperf.conf): order of the images, drawn images, and arrival times.
ORDER_SEED, SAMPLE_SEED, SCHEDULE_SEED = 1780908523862526354, 14771362308971278857, 18209322760996052031
# Different images of a scenario. Their prepared tensors stay in memory.
MAX_SAMPLES = 64


@dataclass(frozen=True)
class Workload:
    """System under test.

    Attributes:
        run: processes ``count`` images, from the image number ``start`` on. After the last image the first follows.
        samples: number of different images.
    """

    run: Callable[[int, int], object]
    samples: int


@dataclass(frozen=True)
class Traffic:
    """Result of a scenario.

    Attributes:
        latencies_ns: latency of each query, int64 ``[queries]``.
        per_query: images per query.
        seconds: time from the start to the last completed query.
        utilization: ratio of the time in which the predictor worked, 0..1.
        loadgen_result: result of LoadGen.
    """

    latencies_ns: NDArray[np.int64]
    per_query: int
    seconds: float
    utilization: float = 1.0
    loadgen_result: str | None = None


def workload(predictor: Predictor, encoded: Sequence[bytes], part: Part) -> Workload:
    """Return the system under test of a scenario.

    Args:
        predictor: loaded variant.
        encoded: content of the image files.
        part: ``whole``: from the encoded image to the prediction. ``infer``: the network alone, on prepared tensors.
    """
    many = list(encoded)

    def whole(start: int, count: int) -> object:
        return predictor.predict(many[start]) if count == 1 else predictor.predict([many[(start + k) % len(many)] for k in range(count)])

    if part == "whole":
        return Workload(whole, len(many))
    # Repeated to the length of a batch, so that each batch is a slice without a copy.
    prepared = np.concatenate([predictor.prepare(predictor.read(image)) for image in many])
    tensors = np.concatenate([prepared] * (1 + -(-max(MAX_BATCH, MAX_SAMPLES) // len(many))))
    return Workload(lambda start, count: predictor.logits(tensors[start : start + count]), len(many))
