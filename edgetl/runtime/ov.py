"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import threading

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgetl.core.preprocess import Batch
from edgetl.core.system.memory import is_out_of_memory, out_of_memory
from edgetl.errors import EngineError, first_line
from edgetl.runtime.engine_versions import need
from edgetl.runtime.model_io import FLOAT32, UINT8, Port, Ports

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
        need("openvino", ov.__version__)
        # Without the precision hint OpenVINO computes in bfloat16 on CPUs that have it, and outputs differ from those at the export.
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        try:
            self._model = core().compile_model(core().read_model(xml, weights), "CPU", hints)
        except (RuntimeError, TypeError, ValueError, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory("loading the model into OpenVINO") from error
            raise EngineError(f"OpenVINO {ov.__version__} refuses the model: {first_line(error)}") from error
        if not self._model.inputs or not self._model.outputs:
            raise EngineError("the model has no input or no output. Nothing was loaded.")
        self._local = threading.local()

    @property
    def ports(self) -> Ports:
        """What the network takes and gives."""
        return Ports(tuple(map(_port, self._model.inputs)), tuple(map(_port, self._model.outputs)))

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        """Logits float32 ``[batch, classes]`` of images, as ``Engine.run`` defines.

        Raises:
            EngineError: the batch does not fit the network, or there is not enough memory.
        """
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        request = self._local.request
        # OpenVINO (2026.4) does not report a failed allocation of a tensor: the output keeps its former values, those of the last image,
        # or has no rows.
        request.get_output_tensor().data[...] = np.nan
        try:
            request.infer([batch], share_inputs=True)
        except (RuntimeError, TypeError, ValueError) as error:
            # A request that failed may keep tensors that it could not allocate.
            del self._local.request
            if is_out_of_memory(error):
                raise out_of_memory(f"running OpenVINO on a batch of shape {list(batch.shape)}") from error
            raise EngineError(f"OpenVINO failed on a batch of shape {list(batch.shape)}: {first_line(error)}") from error
        logits: NDArray[np.float32] = request.get_output_tensor().data.copy()
        if len(logits) != len(batch) or np.isnan(logits).all():
            del self._local.request
            raise EngineError(f"OpenVINO returns no numbers for a batch of shape {list(batch.shape)}, probably for lack of memory.")
        return logits


def _port(output: ov.ConstOutput) -> Port:
    name = output.get_element_type().get_type_name()
    kind = {"f32": FLOAT32, "u8": UINT8}.get(name, name)
    sides = output.get_partial_shape()
    shape = None if sides.rank.is_dynamic else tuple(None if side.is_dynamic else side.get_length() for side in sides)
    return Port(frozenset(output.get_names()), kind, shape)
