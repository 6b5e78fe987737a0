"""Engine for ONNX files: ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from edgetl.core.preprocess import Batch
from edgetl.core.system.execution import DEFAULT_SETTING, ExecutionSetting, Provider
from edgetl.core.system.memory import is_out_of_memory, out_of_memory
from edgetl.errors import EngineError, first_line
from edgetl.runtime.engine_versions import check_version
from edgetl.runtime.model_io import FLOAT32, UINT8, Port, Ports

_MODEL_ERRORS = (_state.InvalidArgument, _state.InvalidGraph, _state.InvalidProtobuf, _state.NoModel, _state.NotImplemented)
_ERRORS = (*_MODEL_ERRORS, _state.Fail, _state.RuntimeException, _state.EPFail, RuntimeError, ValueError)


_PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "acl": "ACLExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
}


def providers() -> tuple[Provider, ...]:
    """Return the execution providers for CPUs in the installed build of ONNX Runtime. The package on PyPI has only ``cpu``."""
    found = set(onnxruntime.get_available_providers())
    return tuple(name for name, provider in _PROVIDERS.items() if provider in found)


class OrtEngine:
    """Engine with a loaded ONNX file (see ``engine.LoadedEngine``)."""

    def __init__(self, model: bytes, *, threads: int, setting: ExecutionSetting = DEFAULT_SETTING) -> None:
        check_version("onnxruntime", onnxruntime.__version__)
        if setting.precision != "f32" or setting.static_batch:
            raise EngineError(f"ONNX Runtime does not support the setting {setting.describe()}. Tune the bundle again.")
        if setting.provider not in providers():
            raise EngineError(
                f"the installed ONNX Runtime {onnxruntime.__version__} has no {_PROVIDERS[setting.provider]}. "
                f"Tune the bundle again on this host: edgetl tune BUNDLE"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Without this setting, the bytes of the file select the format. A file checked as ONNX could be read as an unchecked flatbuffer.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # Operations that the provider does not support run on the CPU provider.
        names = list(dict.fromkeys([_PROVIDERS[setting.provider], _PROVIDERS["cpu"]]))
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=names)
        except (*_ERRORS, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory("loading the model into ONNX Runtime") from error
            raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {first_line(error)}") from error
        if not self._session.get_inputs() or not self._session.get_outputs():
            raise EngineError("the model has no input or no output. It was not loaded. Export the bundle again.")
        self._input = self._session.get_inputs()[0].name
        self._logits = self._session.get_outputs()[0].name

    @property
    def ports(self) -> Ports:
        """Inputs and outputs of the network."""
        return Ports(tuple(map(_port, self._session.get_inputs())), tuple(map(_port, self._session.get_outputs())))

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        """Return the logits float32 ``[batch, classes]`` of a batch (see ``Engine.run``).

        Raises:
            EngineError: the batch does not match the input of the network.
            OutOfMemoryError: there is too little memory.
        """
        return self.run_outputs(batch, (self._logits,))[0]

    def run_outputs(self, batch: Batch, names: Sequence[str], /) -> list[NDArray[np.float32]]:
        """Return several outputs of a batch, by their names. Errors as ``run``."""
        try:
            found: list[NDArray[np.float32]] = self._session.run(list(names), {self._input: batch})
        except (*_ERRORS, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory(f"running ONNX Runtime on a batch of shape {list(batch.shape)}") from error
            raise EngineError(f"ONNX Runtime failed on a batch of shape {list(batch.shape)}: {first_line(error)}") from error
        return found


def _port(argument: onnxruntime.NodeArg) -> Port:
    kind = {"tensor(float)": FLOAT32, "tensor(uint8)": UINT8}.get(argument.type, str(argument.type))
    return Port(frozenset({argument.name}), kind, tuple(side if isinstance(side, int) else None for side in argument.shape))
