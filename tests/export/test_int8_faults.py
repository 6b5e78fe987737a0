"""Faults injected into int8 files: the accuracy gate rejects each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from edgetl.core.manifest import Format
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.progress import silent
from edgetl.data.folder import Sample
from edgetl.data.loading import PixelSet
from edgetl.errors import AccuracyGateError
from edgetl.export.config import ExportConfig
from edgetl.export.context import ExportContext, open_files, prepare
from edgetl.export.convert.to_openvino import save
from edgetl.export.formats import FORMATS
from edgetl.export.gate.agreement import evaluate_file
from edgetl.export.package import export_bundle
from edgetl.export.quantize.attempts import Int8Settings, QuantizerInput
from edgetl.export.variants import quantize
from edgetl.runtime.ov import core
from edgetl.train.artifacts.run import Run
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train

# The int8 files of both formats take most of a minute.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def swish_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run of a head on a random MobileNetV3, which has depthwise convolutions, squeeze-and-excitation and hard swish."""
    config = TrainConfig.from_options(
        backbone="mobilenetv3_small_050", pretrained=False, strategy="probe", input_size=(64, 64), augmented_views=1
    )
    return train(digits, config, tmp_path_factory.mktemp("swish") / "run")


@pytest.fixture(scope="module")
def context(swish_run: Run, tmp_path_factory: pytest.TempPathFactory) -> ExportContext:
    work = tmp_path_factory.mktemp("export")
    context = prepare(swish_run, ExportConfig(calibration_images=100), work, silent)
    context.write_source()
    return context


@pytest.fixture(scope="module")
def good(context: ExportContext) -> dict[Format, list[Path]]:
    """Int8 files that pass."""
    files = {}
    for format_ in FORMATS:
        target = context.work / f"good-{format_}"
        target.mkdir()
        exported = quantize(context, format_, target)
        assert exported.result.reason == "", exported.attempts
        files[format_] = exported.files
    return files


def _reason(context: ExportContext, format_: Format, files: list[Path]) -> str:
    return evaluate_file(open_files(format_, files), context.gate, context.limits, exact=False).reason


Model = onnx.ModelProto


def _tensors(model: Model) -> dict[str, onnx.TensorProto]:
    return {item.name: item for item in model.graph.initializer}


def _change(tensor: onnx.TensorProto, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
    value = numpy_helper.to_array(tensor)
    changed = change(value.astype(np.float64))
    if value.dtype.kind in "iu":
        changed = np.clip(changed, np.iinfo(value.dtype).min, np.iinfo(value.dtype).max)
    tensor.CopyFrom(numpy_helper.from_array(changed.astype(value.dtype), tensor.name))


def _scales_times_ten(model: Model) -> None:
    tensors = _tensors(model)
    for name in {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}:
        _change(tensors[name], lambda value: 10 * value)


def _weights_zero_points_off_by_one(model: Model) -> None:
    tensors = _tensors(model)
    unpacking = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in tensors]
    for name in {node.input[2] for node in unpacking if tensors[node.input[0]].data_type == onnx.TensorProto.INT8}:
        _change(tensors[name], lambda value: value + 1)


def _activations_zero_points_off_by_one(model: Model) -> None:
    """Change the dequantizers only: their zero points then differ from those of the quantizers."""
    tensors = _tensors(model)
    for node in list(model.graph.node):
        if node.op_type == "DequantizeLinear" and node.input[0] not in tensors:
            shifted = onnx.TensorProto()
            shifted.CopyFrom(tensors[node.input[2]])
            _change(shifted, lambda value: value + 1)
            shifted.name = f"{node.name}.shifted"
            model.graph.initializer.append(shifted)
            node.input[2] = shifted.name


def _hard_swish_to_hard_sigmoid(model: Model) -> None:
    """Remove the factor x of x * HardSigmoid(x), the exporter's form of hard swish."""
    makers = {node.output[0]: node for node in model.graph.node}
    hit = 0
    for node in model.graph.node:
        if node.op_type != "Mul":
            continue
        for name in node.input:
            maker = makers.get(name)
            while maker is not None and maker.op_type in ("DequantizeLinear", "QuantizeLinear"):
                maker = makers.get(maker.input[0])
            if maker is not None and maker.op_type == "HardSigmoid":
                node.op_type = "Identity"
                del node.input[:]
                node.input.append(name)
                hit += 1
                break
    assert hit > 5


@pytest.mark.parametrize(
    "fault",
    [_scales_times_ten, _weights_zero_points_off_by_one, _activations_zero_points_off_by_one, _hard_swish_to_hard_sigmoid],
)
def test_the_gate_rejects_a_faulty_int8_onnx_file(
    context: ExportContext, good: dict[Format, list[Path]], fault: Callable[[Model], None], tmp_path: Path
) -> None:
    model = onnx.load(good["onnx"][0])
    fault(model)
    onnx.save(model, tmp_path / "model.onnx")
    assert _reason(context, "onnx", [tmp_path / "model.onnx"])


def _ir_scales_times_ten(model: ov.Model) -> None:
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Multiply" and op.input_value(0).get_node().get_type_name() == "Convert":
            value = op.input_value(1).get_node().get_data()
            op.input(1).replace_source_output(ov.opset13.constant(10 * value, dtype=np.float32).output(0))


def _ir_zero_points_off_by_one(model: ov.Model) -> None:
    """Raise every quantized activation by one step."""
    for op in model.get_ordered_ops():
        if op.get_type_name() != "FakeQuantize":
            continue
        low, high = (op.input_value(port).get_node().get_data() for port in (3, 4))
        step = (high - low) / (op.get_attributes()["levels"] - 1)
        for port, value in ((3, low + step), (4, high + step)):
            op.input(port).replace_source_output(ov.opset13.constant(value, dtype=np.float32).output(0))


def _ir_hard_swish_to_hard_sigmoid(model: ov.Model) -> None:
    swishes = [op for op in model.get_ordered_ops() if op.get_type_name() == "HSwish"]
    assert len(swishes) > 5
    for op in swishes:
        wrong = ov.opset13.hsigmoid(op.input_value(0))
        for reader in op.output(0).get_target_inputs():
            reader.replace_source_output(wrong.output(0))


@pytest.mark.parametrize("fault", [_ir_scales_times_ten, _ir_zero_points_off_by_one, _ir_hard_swish_to_hard_sigmoid])
def test_the_gate_rejects_a_faulty_int8_ir(
    context: ExportContext, good: dict[Format, list[Path]], fault: Callable[[ov.Model], None], tmp_path: Path
) -> None:
    model = core().read_model(good["openvino"][0])
    fault(model)
    model.validate_nodes_and_infer_types()
    save(model, tmp_path / "model.xml")
    assert _reason(context, "openvino", [tmp_path / "model.xml", tmp_path / "model.bin"])


def _black(samples: list[Sample], folder: Path) -> list[Sample]:
    Image.new("RGB", (32, 32)).save(folder / "black.png")
    return [dataclasses.replace(sample, path=folder / "black.png") for sample in samples]


@pytest.mark.parametrize("fault", ["black images", "pixels of 0..255", "not normalized"])
@pytest.mark.parametrize("format_", FORMATS)
def test_the_gate_rejects_a_file_with_wrong_calibration_images(context: ExportContext, format_: Format, fault: str, tmp_path: Path) -> None:
    samples, spec = list(context.calibration.samples), context.calibration.spec
    wrong: dict[str, tuple[list[Sample], PreprocessSpec]] = {
        "black images": (_black(samples, tmp_path), spec),
        "pixels of 0..255": (samples, spec.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)})),
        "not normalized": (samples, spec.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (10.0, 10.0, 10.0)})),
    }
    calibration = [row[None] for batch in PixelSet(*wrong[fault]).batches() for row in batch]
    (tmp_path / "work").mkdir()
    files = FORMATS[format_].quantizer(QuantizerInput(context.source, calibration, tmp_path / "work")).quantize(Int8Settings(), tmp_path)
    assert _reason(context, format_, files)


def test_calibration_on_one_image_is_an_error(swish_run: Run, tmp_path: Path) -> None:
    with pytest.raises(AccuracyGateError, match=r"at least 10 images, and 1 would be used.*--num-samples"):
        export_bundle(swish_run.path, ExportConfig(calibration_images=1, allow_missing=True), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
