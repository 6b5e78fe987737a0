"""Engine for OpenVINO IR: OpenVINO on the CPU."""

from __future__ import annotations

import functools
import platform
import threading
from collections.abc import Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgetl.core.preprocess import Batch
from edgetl.core.system.execution import DEFAULT_SETTING, Arithmetic, ExecutionSetting
from edgetl.core.system.memory import is_out_of_memory, out_of_memory
from edgetl.errors import EngineError, first_line
from edgetl.runtime.engine_versions import check_version
from edgetl.runtime.model_io import FLOAT32, UINT8, Port, Ports

_CAPABILITIES: dict[Arithmetic, str] = {"bf16": "BF16", "f16": "FP16"}
_lock = threading.Lock()


@functools.cache
def _one_core() -> ov.Core:
    return ov.Core()


def core() -> ov.Core:
    """Return the only OpenVINO core of this process.

    The CPU plugin of each core sets a signal stack for the thread that compiles first, and frees it with the core. If several cores are
    freed in another order, the thread keeps a freed stack. The next handled signal, such as Ctrl-C, then kills the process (seen with
    OpenVINO 2026.4).
    """
    with _lock:
        return _one_core()


def precisions() -> tuple[Arithmetic, ...]:
    """Return the precisions in which OpenVINO computes on this CPU with instructions of the CPU, without emulation."""
    found = set(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return ("f32", *(name for name, capability in _CAPABILITIES.items() if capability in found))


class OvEngine:
    """Engine with a compiled IR (see ``engine.LoadedEngine``)."""

    def __init__(self, xml: bytes, weights: bytes, *, threads: int, setting: ExecutionSetting = DEFAULT_SETTING) -> None:
        check_version("openvino", ov.__version__)
        if setting.provider != "cpu":
            raise EngineError(f"{setting.provider} is an execution provider of ONNX Runtime. OpenVINO has none. Tune the bundle again.")
        if setting.precision not in precisions():
            raise EngineError(f"this CPU does not compute in {setting.precision}. Tune the bundle again on this host: edgetl tune BUNDLE")
        # Without the precision hint, OpenVINO computes in bfloat16 on CPUs that support it. Outputs would differ from the export.
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": setting.precision, "INFERENCE_NUM_THREADS": threads}
        self._static = setting.static_batch
        try:
            model = core().read_model(xml, weights)
            # The int8 convolutions for ARM of OpenVINO 2025.4, 2026.1 and 2026.4 return wrong outputs.
            # See https://github.com/openvinotoolkit/openvino/issues/34673.
            if platform.machine() in ("aarch64", "arm64"):
                compute_in_float(model)
            self._ports = Ports(tuple(map(_port, model.inputs)), tuple(map(_port, model.outputs)))
            # A network without inputs is rejected below.
            if self._static and model.inputs and not model.inputs[0].get_partial_shape().rank.is_dynamic:
                model.reshape(_one_image(model.inputs[0].get_partial_shape()))
            self._model = core().compile_model(model, "CPU", hints)
        except (RuntimeError, TypeError, ValueError, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory("loading the model into OpenVINO") from error
            raise EngineError(f"OpenVINO {ov.__version__} cannot load the model: {first_line(error)}") from error
        if not self._model.inputs or not self._model.outputs:
            raise EngineError("the model has no input or no output. It was not loaded. Export the bundle again.")
        self._local = threading.local()

    @property
    def ports(self) -> Ports:
        """Inputs and outputs of the network in the file, also if it was compiled for one image."""
        return self._ports

    def run(self, batch: Batch, /) -> NDArray[np.float32]:
        """Return the logits float32 ``[batch, classes]`` of a batch (see ``Engine.run``).

        With a static batch of one image, the images of a larger batch are computed one after another.

        Raises:
            EngineError: the batch does not match the input of the network, or there is too little memory.
            OutOfMemoryError: there is too little memory.
        """
        return self._run(batch, (0,))[0]

    def run_outputs(self, batch: Batch, names: Sequence[str], /) -> list[NDArray[np.float32]]:
        """Return several outputs of a batch, by their names. Errors as ``run``."""
        places = {name: index for index, port in enumerate(self._ports.outputs) for name in port.names}
        return self._run(batch, [places[name] for name in names])

    def _run(self, batch: Batch, places: Sequence[int]) -> list[NDArray[np.float32]]:
        if not self._static or len(batch) == 1:
            return self._run_whole(batch, places)
        rows = [self._run_whole(batch[index : index + 1], places) for index in range(len(batch))]
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]

    def _run_whole(self, batch: Batch, places: Sequence[int]) -> list[NDArray[np.float32]]:
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        request = self._local.request
        # OpenVINO (2026.4) does not report a failed allocation of a tensor. The output then has no rows, or keeps the values of the
        # previous image.
        for place in places:
            request.get_output_tensor(place).data[...] = np.nan
        try:
            request.infer([batch], share_inputs=True)
        except (RuntimeError, TypeError, ValueError) as error:
            # A failed request may keep tensors that were not allocated.
            del self._local.request
            if is_out_of_memory(error):
                raise out_of_memory(f"running OpenVINO on a batch of shape {list(batch.shape)}") from error
            raise EngineError(f"OpenVINO failed on a batch of shape {list(batch.shape)}: {first_line(error)}") from error
        found: list[NDArray[np.float32]] = [request.get_output_tensor(place).data.copy() for place in places]
        if any(len(output) != len(batch) or np.isnan(output).all() for output in found):
            del self._local.request
            raise EngineError(
                f"OpenVINO returned no output for a batch of shape {list(batch.shape)}, probably because of too little memory. "
                f"Use smaller batches, or another variant."
            )
        return found


def compute_in_float(model: ov.Model) -> None:
    """Decompose each ``FakeQuantize`` into clamping, scaling and rounding, in place. OpenVINO then computes an int8 network in float.

    OpenVINO computes in int8 only behind a ``FakeQuantize``, and has no public property that turns this off. The decomposition follows the
    specification of the operation.
    """
    opset = ov.opset13
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        values, low, high, out_low, out_high = node.input_values()
        steps = opset.constant(node.get_attributes()["levels"] - 1, node.get_output_element_type(0))
        clamped = opset.minimum(opset.maximum(values, low), high)
        scaled = opset.multiply(opset.subtract(clamped, low), opset.divide(steps, opset.subtract(high, low)))
        step = opset.divide(opset.subtract(out_high, out_low), steps)
        result = opset.add(opset.multiply(opset.round(scaled, "half_to_even"), step), out_low)
        node.output(0).replace(result.output(0))


def _one_image(shape: ov.PartialShape) -> ov.PartialShape:
    """Return ``shape`` with a batch of one image."""
    fixed = ov.PartialShape(shape)
    fixed[0] = ov.Dimension(1)
    return fixed


def _port(output: ov.Output) -> Port:
    name = output.get_element_type().get_type_name()
    kind = {"f32": FLOAT32, "u8": UINT8}.get(name, name)
    sides = output.get_partial_shape()
    shape = None if sides.rank.is_dynamic else tuple(None if side.is_dynamic else side.get_length() for side in sides)
    return Port(frozenset(output.get_names()), kind, shape)
