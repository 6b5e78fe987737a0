"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import threading

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgetl.core.preprocess import Batch
from edgetl.errors import EngineError

_lock = threading.Lock()


@functools.cache
def _one_core() -> ov.Core:
    return ov.Core()


def core() -> ov.Core:
    """The process's only one.

    Each core's CPU plugin gives the thread that compiles first a signal stack of its own and frees it with itself; when several
    go in another order than they came, the thread is left with one that is freed, and the next signal with a handler, such as a Ctrl-C,
    kills the process (seen with OpenVINO 2026.4).
    """
    with _lock:
        return _one_core()


class OvEngine:
    """An IR's ``.xml`` and ``.bin`` bytes, compiled."""

    def __init__(self, xml: bytes, weights: bytes, *, threads: int) -> None:
        # Without the precision hint OpenVINO computes in bfloat16 on CPUs that have it, and answers differ from the bench's.
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        try:
            self._model = core().compile_model(core().read_model(xml, weights), "CPU", hints)
        except (RuntimeError, TypeError, ValueError) as error:
            raise EngineError(f"OpenVINO {ov.__version__} refuses the model: {_first_line(error)}") from error
        self._local = threading.local()

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        """Logits float32 ``[batch, classes]`` of images, as ``Engine.run`` says.

        Raises:
            EngineError: the batch does not fit the network.
        """
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        request = self._local.request
        try:
            request.infer([batch], share_inputs=True)
        except (RuntimeError, TypeError, ValueError) as error:
            raise EngineError(f"OpenVINO failed on a batch of shape {list(batch.shape)}: {_first_line(error)}") from error
        logits: NDArray[np.float32] = request.get_output_tensor().data.copy()
        return logits


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
