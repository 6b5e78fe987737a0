"""Post-training int8 quantization for OpenVINO, by NNCF on the IR."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
from nncf.quantization.advanced_parameters import AdvancedAccuracyRestorerParameters, OverflowFix
from numpy.typing import NDArray
from openvino._offline_transformations import compress_quantize_weights_transformation

from edgetl.errors import ExportError, first_line
from edgetl.export.convert.to_openvino import read_onnx, save
from edgetl.export.quantize.attempts import FloatHead, Int8Settings, QuantizerInput, plan_attempts
from edgetl.runtime.ov import core

# NNCF's accuracy-aware search: largest number of operations restored to fp32, and number of images for ranking them.
MOST_REVERTED = 20
RANKING_IMAGES = 100


class OpenVinoQuantizer:
    """Quantizer that writes OpenVINO IR (see ``attempts.Quantizer``)."""

    def __init__(self, given: QuantizerInput) -> None:
        """Convert the fp32 ONNX file to an IR.

        Raises:
            ExportError: the file is already quantized, or OpenVINO cannot convert it.
        """
        self._float_ends = given.float_ends
        self._source = given.work / "plain.xml"
        self._calibration = given.calibration
        self._control = given.control
        self._model: ov.Model | None = None
        model = read_onnx(given.source)
        if any(op.get_type_name() == "FakeQuantize" for op in model.get_ops()):
            raise ExportError(f"{given.source.name} is already quantized. Quantize the fp32 export of the same run.")
        save(model, self._source)

    def attempts(self, cpu: str) -> list[Int8Settings]:
        """Return the settings to attempt, cheapest first."""
        return plan_attempts(cpu, bias_corrected=True, controlled=self._control is not None)

    def quantize(self, settings: Int8Settings, folder: Path, fp32: tuple[str, ...] = ()) -> list[Path]:
        """Write ``model.xml`` and ``model.bin`` quantized with ``settings``.

        Raises:
            ExportError: there are no calibration images, or NNCF cannot quantize the network.
        """
        if not self._calibration:
            raise ExportError("int8 needs calibration images, and there are none. Add training images, or raise --num-samples.")
        model = core().read_model(self._source)
        names = [*fp32, *([_head(model).get_friendly_name()] if settings.refit else []), *_ends(model, self._float_ends)]
        attention = any(op.get_type_name() in ("ScaledDotProductAttention", "Softmax") for op in model.get_ops())
        names += [] if attention else _first_depthwise(model)
        options: dict[str, Any] = {
            "subset_size": len(self._calibration),
            "fast_bias_correction": not settings.full_bias,
            "model_type": nncf.ModelType.TRANSFORMER if attention else None,
            "ignored_scope": nncf.IgnoredScope(names=list(dict.fromkeys(names))) if names else None,
        }
        advanced = nncf.AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if settings.seven_bit else OverflowFix.FIRST_LAYER,
            # ``_save`` compresses the weights. Until then an operation can be restored to fp32.
            backend_params={"compress_weights": False},
        )
        try:
            # NNCF creates OpenVINO cores, and their signal stacks would stay with this thread (see ``runtime.ov.core``).
            with _quiet(), ThreadPoolExecutor(max_workers=1) as thread:
                self._model = thread.submit(self._by_nncf, settings, model, options, advanced).result()
        except (nncf.ValidationError, nncf.UnsupportedModelError, nncf.InternalError, RuntimeError) as error:
            raise ExportError(f"NNCF {nncf.__version__} cannot quantize the network: {first_line(error)}") from error
        return self._save(self._model, folder)

    def _by_nncf(
        self, settings: Int8Settings, model: ov.Model, options: dict[str, Any], advanced: nncf.AdvancedQuantizationParameters
    ) -> ov.Model:
        try:
            if settings.controlled:
                return self._controlled(model, options, advanced)
            return nncf.quantize(model, nncf.Dataset(self._calibration), advanced_parameters=advanced, **options)
        finally:
            gc.collect()  # frees NNCF's reference cycles in the thread that created them

    def _controlled(self, model: ov.Model, options: dict[str, Any], advanced: nncf.AdvancedQuantizationParameters) -> ov.Model:
        assert self._control is not None, "the accuracy-aware attempt needs labeled images"
        labeled = self._control.measurement_images()
        items = [(image[None], int(label)) for image, label in zip(labeled.images, labeled.truth, strict=True)]

        def accuracy(compiled: ov.CompiledModel, chosen: Iterable[tuple[NDArray[np.float32], int]]) -> tuple[float, list[float]]:
            hits = [float(compiled(image)[0].argmax() == label) for image, label in chosen]
            return float(np.mean(hits)), hits

        return nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(self._calibration),
            nncf.Dataset(items, lambda item: item[0]),
            accuracy,
            max_drop=self._control.max_drop,
            advanced_quantization_parameters=advanced,
            advanced_accuracy_restorer_parameters=AdvancedAccuracyRestorerParameters(
                max_num_iterations=MOST_REVERTED, ranking_subset_size=min(RANKING_IMAGES, len(items)), num_ranking_workers=1
            ),
            **options,
        )

    def write_features(self, folder: Path) -> list[Path]:
        """Write the quantized backbone; its output is the features ``[batch, width]``."""
        model = self._quantized().clone()
        return self._save(ov.Model([_head(model).input_value(0)], model.get_parameters()), folder)

    def replace_head(self, head: FloatHead, folder: Path) -> list[Path]:
        """Write the quantized model with ``head`` in place of the fp32 head.

        Raises:
            ExportError: the network does not end in one linear layer.
        """
        model = self._quantized()
        matmul = _head(model)
        transposed = bool(matmul.get_attributes()["transpose_b"])
        _replace_constant(matmul, 1, head.weight if transposed else head.weight.T)
        add = next(
            (target.get_node() for target in matmul.output(0).get_target_inputs() if target.get_node().get_type_name() == "Add"), None
        )
        if add is None:
            raise ExportError("the head has no bias, so it cannot be re-fitted: the network does not end in one linear layer.")
        _replace_constant(add, 1, head.bias.reshape(1, -1))
        model.validate_nodes_and_infer_types()
        return self._save(model, folder)

    def operations(self) -> dict[str, str]:
        """Return the operations of the last quantized model that read a quantized tensor, by name with their kind."""
        return {op.get_friendly_name(): op.get_type_name() for op in self._quantized().get_ordered_ops() if any(_fake_quantized(op))}

    def write_restored(self, name: str, folder: Path) -> list[Path]:
        """Write the last quantized model with the operation ``name`` on fp32 inputs. An empty name restores nothing."""
        model = self._quantized().clone()
        for op in model.get_ordered_ops():
            if op.get_friendly_name() == name:
                for port, fake in enumerate(_fake_quantized(op)):
                    if fake is not None:
                        reader = op.input_value(port).get_node()
                        owner, at = (op, port) if reader.get_type_name() == "FakeQuantize" else (reader, 0)
                        owner.input(at).replace_source_output(fake.input_value(0))
        return self._save(model, folder)

    def _quantized(self) -> ov.Model:
        assert self._model is not None, "call quantize first"
        return self._model

    def _save(self, model: ov.Model, folder: Path) -> list[Path]:
        packed = model.clone()
        compress_quantize_weights_transformation(packed)
        save(packed, folder / "model.xml")
        return [folder / "model.xml", folder / "model.bin"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress NNCF's log messages and its progress bars on the standard output."""
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _fake_quantized(op: Any) -> list[Any]:
    """Return for each input of an operation its ``FakeQuantize``, or None. The reshape of a grouped kernel between them is skipped."""
    if op.get_type_name() in ("FakeQuantize", "Reshape", "Result"):
        return []
    found = []
    for port in range(op.get_input_size()):
        node = op.input_value(port).get_node()
        if node.get_type_name() == "Reshape":
            node = node.input_value(0).get_node()
        found.append(node if node.get_type_name() == "FakeQuantize" else None)
    return found


def _ends(model: ov.Model, count: int) -> list[str]:
    """Return the names of the operations of a head that stays in fp32: from each subtraction of the features' center to the output.

    The subtractions are the inputs of the last ``count`` operations ``ReduceL2``, which compute the length of the features.
    """
    ops = model.get_ordered_ops()
    measured = [op for op in ops if op.get_type_name() == "ReduceL2"][-count:] if count else []
    inside = {op.input_value(0).get_node().get_friendly_name() for op in measured}
    for op in ops:
        if any(op.input_value(port).get_node().get_friendly_name() in inside for port in range(op.get_input_size())):
            inside.add(op.get_friendly_name())
    return [op.get_friendly_name() for op in ops if op.get_friendly_name() in inside and op.get_type_name() != "Result"]


def _first_depthwise(model: ov.Model) -> list[str]:
    """Return the name of the first depthwise convolution, or nothing.

    Depthwise convolutions lose most by quantization (A Quantization-Friendly Separable Convolution for MobileNets, arXiv:1803.08607), and
    all later layers depend on the first. With this layer in fp32, the root mean square error of the logits falls by 40 % (MobileNetV2).
    Its weights alone cause most of this error. The layer before it gains nothing. The latency rises by 1 to 3 %.
    """
    for op in model.get_ordered_ops():
        # The kernel is [groups, outputs of a group, inputs of a group, height, width].
        if op.get_type_name() == "GroupConvolution" and op.input(1).get_partial_shape()[2] == 1:
            return [op.get_friendly_name()]
    return []


def _head(model: ov.Model) -> Any:
    found = [op for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"]
    if not found:
        raise ExportError("the network has no matrix product, so its head cannot be re-fitted: it does not end in one linear layer.")
    return found[-1]


def _replace_constant(node: Any, port: int, value: NDArray[np.float32]) -> None:
    constant = ov.opset13.constant(np.ascontiguousarray(value), dtype=np.float32)
    node.input(port).replace_source_output(constant.output(0))
