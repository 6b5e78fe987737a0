"""Errors of the quantizers, and saturation of 8-bit weights on this CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgetl.core.bundle import Bundle
from edgetl.core.system.host import has_int8_dot_product
from edgetl.errors import ExportError
from edgetl.export.convert.to_openvino import read_onnx
from edgetl.export.quantize.attempts import Int8Settings, QuantizerInput, plan_attempts
from edgetl.export.quantize.nncf_quantizer import OpenVinoQuantizer
from edgetl.export.quantize.ort_quantizer import OnnxQuantizer
from edgetl.runtime.engine import load_engine
from tests.runtime.hostile import as_ir, end

CHANNELS, KERNELS, SIDE = 64, 8, 5


@pytest.fixture
def calibration(bundle: Bundle) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, 3, *bundle.manifest.preprocess.input_size)).astype(np.float32) for _ in range(4)]


def _file(bundle: Bundle, name: str) -> Path:
    return bundle.path / bundle.variant(name).files[0].path


def test_onnx_runtime_rejects_a_file_that_is_already_quantized(
    bundle: Bundle, calibration: list[NDArray[np.float32]], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"model\.onnx is already quantized\. Quantize the fp32 export"):
        OnnxQuantizer(QuantizerInput(_file(bundle, "onnx-int8"), calibration, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_openvino_rejects_a_file_that_is_already_quantized(bundle: Bundle, calibration: list[NDArray[np.float32]], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"model\.onnx is already quantized\. Quantize the fp32 export"):
        OpenVinoQuantizer(QuantizerInput(_file(bundle, "onnx-int8"), calibration, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_missing_calibration_images_are_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with pytest.raises(ExportError, match=r"int8 needs calibration images, and there are none\."):
        OnnxQuantizer(QuantizerInput(_file(bundle, "onnx-fp32"), [], tmp_path / "work")).quantize(Int8Settings(), tmp_path)
    with pytest.raises(ExportError, match=r"int8 needs calibration images, and there are none\."):
        OpenVinoQuantizer(QuantizerInput(_file(bundle, "onnx-fp32"), [], tmp_path / "work")).quantize(Int8Settings(), tmp_path)
    assert not list(tmp_path.glob("model.*"))


@pytest.mark.parametrize(("operator", "domain"), [("Foreign", "org.example"), ("Foreign", ""), ("Det", "")])
def test_an_unknown_operator_is_named(
    bundle: Bundle, calibration: list[NDArray[np.float32]], tmp_path: Path, operator: str, domain: str
) -> None:
    model = onnx.load(_file(bundle, "onnx-fp32"))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = operator, domain
    if domain:
        model.opset_import.add(domain=domain, version=1)
    onnx.save(model, tmp_path / "odd.onnx")
    (tmp_path / "work").mkdir()
    expected = operator if operator == "Foreign" else "quantize the network"
    with pytest.raises(ExportError, match=rf"ONNX Runtime cannot .*{expected}") as caught:
        OnnxQuantizer(QuantizerInput(tmp_path / "odd.onnx", calibration, tmp_path / "work")).quantize(Int8Settings(), tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match=rf"OpenVINO .* cannot convert odd\.onnx: .*{operator}") as caught:
        read_onnx(tmp_path / "odd.onnx")
    assert "\n" not in str(caught.value)


def _weights(largest: int) -> NDArray[np.int8]:
    """Return kernels int8 ``[8, 64, 1, 1]`` at the ends of the range: positive, negative, alternating and random signs."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1, 1], (KERNELS, CHANNELS))
    signs[0], signs[1], signs[2] = 1, -1, np.resize([1, -1], CHANNELS)
    return (largest * signs).astype(np.int8)[:, :, None, None]


def _expected(pixels: NDArray[np.float32], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    return np.einsum("nchw,kc->nkhw", pixels.astype(np.int32), weights[:, :, 0, 0].astype(np.int32))


def _convolution(weights: NDArray[np.int8], *, integer: bool) -> bytes:
    """Return a convolution of uint8 by int8.

    ``integer`` uses ``ConvInteger``, for ONNX Runtime. Otherwise a float convolution follows dequantizers. OpenVINO computes it in int8.
    """
    constants = {"weights": weights, "unit": np.float32(1), "zero": np.uint8(0), "none": np.int8(0)}
    if integer:
        nodes = [
            helper.make_node("Cast", ["input"], ["pixels"], to=TensorProto.UINT8),
            helper.make_node("ConvInteger", ["pixels", "weights", "zero"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["logits"], to=TensorProto.FLOAT),
        ]
    else:
        nodes = [
            helper.make_node("QuantizeLinear", ["input", "unit", "zero"], ["pixels"]),
            helper.make_node("DequantizeLinear", ["pixels", "unit", "zero"], ["real"]),
            helper.make_node("DequantizeLinear", ["weights", "unit", "none"], ["kernel"]),
            helper.make_node("Conv", ["real", "kernel"], ["logits"]),
        ]
    ends = [end("input", ["n", CHANNELS, SIDE, SIDE]), end("logits", ["n", KERNELS, SIDE, SIDE])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("largest", [127, 63], ids=["8-bit", "7-bit"])
@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_int8_sums_at_the_ends_of_the_range_are_exact_unless_kernels_saturate(tmp_path: Path, format_: str, largest: int) -> None:
    """7-bit weights are exact on every CPU. 8-bit weights are exact if int8 products are added in 32 bits, as on a CPU with VNNI.

    Other CPUs add pairs of products in 16 bits. Sums of ``255 * 127`` then saturate at 32767, so the quantization search uses 7 bits.
    """
    weights = _weights(largest)
    rng = np.random.default_rng(1)
    pixels = rng.choice([0, 254, 255], (2, CHANNELS, SIDE, SIDE)).astype(np.float32)
    pixels[0] = 255
    model = _convolution(weights, integer=format_ == "onnx")
    if format_ == "onnx":
        found = load_engine("onnx", [model], threads=1).run(pixels)
    else:
        found = load_engine("openvino", as_ir(model, tmp_path), threads=1).run(pixels)
    saturated = bool((found != _expected(pixels, weights)).any())
    print(f"{format_}, weights of {largest}, {'with' if has_int8_dot_product() else 'without'} VNNI: {saturated=}")
    assert not saturated or (largest > 64 and not has_int8_dot_product())


def test_openvino_computes_the_convolution_in_int8(tmp_path: Path) -> None:
    xml, weights = as_ir(_convolution(_weights(127), integer=False), tmp_path)
    compiled = ov.Core().compile_model(ov.Core().read_model(xml, weights), "CPU")
    facts = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    kinds = [_text(fact["runtimePrecision"]) for fact in facts if _text(fact["layerType"]) == "Convolution"]
    assert kinds == ["u8"]


def _text(value: object) -> str:
    return str(getattr(value, "value", value))


def test_quantization_for_any_cpu_limits_weights_to_7_bits(bundle: Bundle, calibration: list[NDArray[np.float32]], tmp_path: Path) -> None:
    assert all(settings.seven_bit for settings in plan_attempts("any"))
    assert all(settings.seven_bit is not has_int8_dot_product() for settings in plan_attempts("here"))
    (tmp_path / "work").mkdir()
    (path,) = OnnxQuantizer(QuantizerInput(_file(bundle, "onnx-fp32"), calibration, tmp_path / "work")).quantize(
        plan_attempts("any")[0], tmp_path
    )
    kept = [numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer if item.data_type == TensorProto.INT8]
    largest = max(int(np.abs(item.astype(np.int32)).max()) for item in kept)
    assert 32 < largest <= 64
