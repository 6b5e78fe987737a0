"""Post-training int8 quantization for ONNX Runtime: static QDQ, per channel. Vision transformers also use dynamic matrix products."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgetl.errors import ExportError, first_line
from edgetl.export.convert.metadata import INPUT_NAME
from edgetl.export.quantize.attempts import FloatHead, Int8Settings, QuantizerInput, plan_attempts
from edgetl.export.quantize.bias_correction import correct_biases

_QUANTIZER_ERRORS = (RuntimeError, ValueError, KeyError, TypeError, Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException)


class OnnxQuantizer:
    """Quantizer that writes ONNX files (see ``attempts.Quantizer``)."""

    def __init__(self, given: QuantizerInput) -> None:
        """Prepare the fp32 ONNX file for quantization.

        Raises:
            ExportError: the file is already quantized, or ONNX Runtime cannot infer its shapes.
        """
        self._float_ends = given.float_ends
        self._calibration = given.calibration
        self._work = given.work
        self._prepared = given.work / "prepared.onnx"
        model = onnx.load(given.source)
        if any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear") for node in model.graph.node):
            raise ExportError(f"{given.source.name} is already quantized. Quantize the fp32 export of the same run.")
        self._properties = {item.key: item.value for item in model.metadata_props}
        # The exporter's shape annotations contradict those that the quantizer infers.
        del model.graph.value_info[:]
        onnx.save(model, given.work / "plain.onnx")
        try:
            quant_pre_process(given.work / "plain.onnx", self._prepared, skip_symbolic_shape=True)
        except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"ONNX Runtime cannot prepare {given.source.name} for quantization: {first_line(error)}") from error

    def attempts(self, cpu: str) -> list[Int8Settings]:
        """Return the settings to attempt, cheapest first.

        Dynamic quantization is first if matrix products have most of the weights, as in a vision transformer.
        """
        graph = onnx.load(self._prepared).graph
        sizes = {item.name: int(np.prod(item.dims)) for item in graph.initializer}
        held = {kind: sum(sizes.get(name, 0) for node in graph.node if node.op_type == kind for name in node.input) for kind in _WEIGHTED}
        return plan_attempts(cpu, dynamic=held["MatMul"] > 0.8 * sum(held.values()))

    def quantize(self, settings: Int8Settings, folder: Path, fp32: tuple[str, ...] = ()) -> list[Path]:
        """Write ``model.onnx`` quantized with ``settings``. All attempts share one run over the calibration images.

        Raises:
            ExportError: there are no calibration images, or ONNX Runtime cannot quantize the network.
        """
        if not self._calibration:
            raise ExportError("int8 needs calibration images, and there are none. Add training images, or raise --num-samples.")
        graph = onnx.load(self._prepared).graph
        excluded = [*fp32, *([_head(graph).name] if settings.refit else []), *_ends(graph, self._float_ends)]
        target = folder / "model.onnx"
        try:
            with _quiet():
                if settings.dynamic:
                    self._quantize_products(settings, target, excluded)
                else:
                    self._quantize_all(settings, target, excluded)
        except (*_QUANTIZER_ERRORS, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"ONNX Runtime cannot quantize the network: {first_line(error)}") from error
        model = onnx.load(target)
        if settings.full_bias:
            correct_biases(model, onnx.load(self._prepared), self._calibration)
        onnx.helper.set_model_props(model, self._properties)
        onnx.save(model, target)
        onnx.save(model, self._work / "quantized.onnx")
        return [target]

    def _quantize_all(self, settings: Int8Settings, target: Path, excluded: list[str]) -> None:
        quantize_static(
            self._prepared,
            target,
            _Reader(self._calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=settings.seven_bit,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            calibration_cache_path=self._work / "ranges.json",
        )

    def _quantize_products(self, settings: Int8Settings, target: Path, excluded: list[str]) -> None:
        plain = onnx.load(self._prepared)
        del plain.graph.value_info[:]  # shapes inferred for static quantization contradict those of dynamic quantization
        quantize_dynamic(
            plain,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=settings.seven_bit,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            extra_options={"MatMulConstBOnly": True},
        )

    def write_features(self, folder: Path) -> list[Path]:
        """Write the quantized backbone; its output is the features ``[batch, width]``."""
        model = onnx.load(self._work / "quantized.onnx")
        features = onnx.helper.make_tensor_value_info(_head(model.graph).input[0], onnx.TensorProto.FLOAT, None)
        model.graph.output[0].CopyFrom(features)
        onnx.save(model, folder / "model.onnx")
        return [folder / "model.onnx"]

    def replace_head(self, head: FloatHead, folder: Path) -> list[Path]:
        """Write the quantized model with ``head`` in place of the fp32 head.

        Raises:
            ExportError: the network does not end in one linear layer.
        """
        model = onnx.load(self._work / "quantized.onnx")
        node = _head(model.graph)
        if node.op_type != "Gemm" or len(node.input) != 3:
            raise ExportError(
                f"the head is a {node.op_type} without a bias, so it cannot be re-fitted: the network does not end in one linear layer."
            )
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        values = {node.input[1]: head.weight if transposed else head.weight.T, node.input[2]: head.bias}
        for initializer in model.graph.initializer:
            if initializer.name in values:
                value = np.ascontiguousarray(values[initializer.name], np.float32)
                initializer.CopyFrom(onnx.numpy_helper.from_array(value, initializer.name))
        onnx.save(model, folder / "model.onnx")
        return [folder / "model.onnx"]

    def operations(self) -> dict[str, str]:
        """Return the nodes of the last quantized model that read a dequantized tensor, by name with their kind."""
        graph = onnx.load(self._work / "quantized.onnx").graph
        dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        readers = (node for node in graph.node if dequantized.intersection(node.input))
        return {node.name: node.op_type for node in readers if node.op_type != "QuantizeLinear"}

    def write_restored(self, name: str, folder: Path) -> list[Path]:
        """Write the last quantized model with the node ``name`` on fp32 inputs. An empty name restores nothing."""
        model = onnx.load(self._work / "quantized.onnx")
        before = onnx.load(self._prepared).graph
        made = {output: node for node in model.graph.node for output in node.output}
        constants = {item.name: item for item in before.initializer}
        original = next((node for node in before.node if node.name == name and name), None)
        for node in model.graph.node:
            if original is None or node.name != name:
                continue
            for port, source in enumerate(original.input):
                if source in constants:
                    constants[source].name = f"{name}.{port}.fp32"  # the quantizer may have reused the original name
                    model.graph.initializer.append(constants[source])
                    node.input[port] = constants[source].name
                elif port < len(node.input) and (quantized := made.get(node.input[port])) and quantized.op_type == "DequantizeLinear":
                    node.input[port] = made[quantized.input[0]].input[0]
        onnx.save(model, folder / "model.onnx")
        return [folder / "model.onnx"]


_WEIGHTED = ("Conv", "Gemm", "MatMul")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantizer's messages below ERROR, which use the root logger."""
    root_log = logging.getLogger()
    level = root_log.level
    root_log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root_log.setLevel(level)


class _Reader(CalibrationDataReader):
    """Calibration reader of ONNX Runtime; returns one image at a time."""

    def __init__(self, calibration: Sequence[NDArray[np.float32]]) -> None:
        self._rows: Iterator[NDArray[np.float32]] = iter(calibration)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next image, or None at the end."""
        batch = next(self._rows, None)
        return None if batch is None else {INPUT_NAME: batch}


def _ends(graph: onnx.GraphProto, count: int) -> list[str]:
    """Return the names of the nodes of a head that stays in fp32: from each subtraction of the features' center to the output.

    The subtractions are the inputs of the last ``count`` nodes ``ReduceL2``, which compute the length of the features.
    """
    inside = set([node.input[0] for node in graph.node if node.op_type == "ReduceL2"][-count:] if count else [])
    names = []
    for node in graph.node:
        if inside.intersection([*node.input, *node.output]):
            inside.update(node.output)
            names.append(node.name)
    return names


def _head(graph: onnx.GraphProto) -> onnx.NodeProto:
    found = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    if not found:
        raise ExportError("the network has no matrix product, so its head cannot be re-fitted: it does not end in one linear layer.")
    return found[-1]
