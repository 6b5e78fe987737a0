from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import timm
import torch
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle
from edgetl.core.manifest import Format
from edgetl.core.preprocess import PreprocessSpec
from edgetl.data.loading import PixelSet, stratified
from edgetl.export.config import ExportConfig
from edgetl.export.convert.to_onnx import to_onnx
from edgetl.export.formats import FORMATS
from edgetl.export.gate.agreement import median_cosine
from edgetl.export.package import export_bundle
from edgetl.export.quantize.attempts import Int8Settings, QuantizerInput
from edgetl.export.quantize.nncf_quantizer import OpenVinoQuantizer
from edgetl.export.quantize.ort_quantizer import OnnxQuantizer
from edgetl.runtime.engine import load_engine
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.run import Run


def _calibration(run: Run, count: int = 60) -> list[NDArray[np.float32]]:
    images = PixelSet(stratified(run.samples("train"), count), run.record.preprocess)
    return [row[None] for batch in images.batches() for row in batch]


def _outputs(files: list[Path], images: NDArray[np.float32]) -> NDArray[np.float32]:
    format_ = "onnx" if len(files) == 1 else "openvino"
    return load_engine(format_, [path.read_bytes() for path in files], threads=1).run(images)  # type: ignore[arg-type]


def _unseen(run: Run) -> NDArray[np.float32]:
    return next(PixelSet(stratified(run.samples("val"), 64), run.record.preprocess).batches(64))


def test_bias_correction_reduces_the_shift_of_the_mean_outputs(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    calibration, images = _calibration(run), _unseen(run)
    plain = _outputs([bundle.path / "onnx-fp32/1/model.onnx"], images)
    shifts, cosines = [], []
    for full in (False, True):
        work = tmp_path / str(full)
        work.mkdir()
        quantizer = OnnxQuantizer(QuantizerInput(bundle.path / "onnx-fp32/1/model.onnx", calibration, work))
        found = _outputs(quantizer.quantize(Int8Settings(seven_bit=True, full_bias=full), work), images)
        shifts.append(float(np.abs((found - plain).mean(axis=0)).max()))
        cosines.append(median_cosine(plain, found))
    assert shifts[1] < 0.7 * shifts[0]
    assert cosines[0] is not None and cosines[1] is not None and cosines[1] >= cosines[0] - 1e-4 and cosines[1] > 0.99


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_a_restored_operation_computes_in_fp32(format_: Format, bundle: Bundle, run: Run, tmp_path: Path) -> None:
    calibration, images = _calibration(run), _unseen(run)
    work, tried = tmp_path / "work", tmp_path / "tried"
    work.mkdir()
    tried.mkdir()
    quantizer = FORMATS[format_].quantizer(QuantizerInput(bundle.path / "onnx-fp32/1/model.onnx", calibration, work))
    quantized = _outputs(quantizer.quantize(Int8Settings(seven_bit=True), tmp_path), images)
    operations = quantizer.operations()
    assert sum("Conv" in kind for kind in operations.values()) > 5 and any(kind in ("Gemm", "MatMul") for kind in operations.values())
    assert np.array_equal(_outputs(quantizer.write_restored("", tried), images), quantized)
    changed = [name for name in operations if not np.array_equal(_outputs(quantizer.write_restored(name, tried), images), quantized)]
    assert len(changed) > 0.8 * len(operations), "restoring an operation changes the outputs"
    head = next(name for name, kind in operations.items() if kind in ("Gemm", "MatMul"))
    fp32 = _outputs(quantizer.quantize(Int8Settings(seven_bit=True), tmp_path, (head,)), images)
    assert not np.array_equal(fp32, quantized)


def test_openvino_keeps_the_first_depthwise_convolution_in_fp32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    grouped, depthwise = (torch.nn.Conv2d(8, 8, 3, groups=groups) for groups in (2, 8))
    layers = torch.nn.Conv2d(3, 8, 3), grouped, depthwise, torch.nn.Conv2d(8, 8, 3, groups=8)
    body = [module for layer in layers for module in (layer, torch.nn.ReLU())]
    model = torch.nn.Sequential(*body, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)).eval()
    to_onnx(model, PreprocessSpec(input_size=(32, 32)), tmp_path / "source.onnx", {})
    images = np.random.default_rng(0).normal(size=(4, 1, 3, 32, 32)).astype(np.float32)
    (tmp_path / "work").mkdir()
    quantizer = OpenVinoQuantizer(QuantizerInput(tmp_path / "source.onnx", list(images), tmp_path / "work"))
    quantizer.quantize(Int8Settings(), tmp_path)
    quantized = [kind for kind in quantizer.operations().values() if "Convolution" in kind]
    assert quantized == ["Convolution", "GroupConvolution", "GroupConvolution"], "all but the first depthwise convolution"


def test_int8_weights_are_small_and_keep_the_accuracy(run: Run, tmp_path: Path) -> None:
    bundle = export_bundle(run.path, ExportConfig(precisions=("fp32", "int8-weights")), tmp_path / "bundle")
    sizes = {item.name: item.size_bytes for item in bundle.manifest.variants}
    assert set(sizes) == {f"{format_}-{precision}" for format_ in ("onnx", "openvino") for precision in ("fp32", "int8-weights")}
    for format_ in ("onnx", "openvino"):
        assert sizes[f"{format_}-int8-weights"] < 0.45 * sizes[f"{format_}-fp32"]
        assert bundle.variant(f"{format_}-int8-weights").agreement.top1_agreement > 0.98
    assert bundle.manifest.calibration is None, "weight-only quantization needs no images"
    model = onnx.load(bundle.path / "onnx-int8-weights/1/model.onnx")
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph.node), "activations stay float"
    assert load(bundle, variant="onnx-int8-weights").predict(run.samples("test")[0].path).score > 0


def test_only_matrix_products_of_a_vision_transformer_are_quantized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=7).eval()
    spec = PreprocessSpec(input_size=(160, 160))
    to_onnx(model, spec, tmp_path / "source.onnx", {})
    images = np.random.default_rng(0).normal(size=(12, 3, 160, 160)).astype(np.float32)
    (tmp_path / "work").mkdir()
    quantizer = OnnxQuantizer(QuantizerInput(tmp_path / "source.onnx", [image[None] for image in images], tmp_path / "work"))
    assert quantizer.attempts("any")[0].dynamic
    (file,) = quantizer.quantize(Int8Settings(dynamic=True), tmp_path)
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert "MatMulInteger" in kinds and "Conv" in kinds and "ConvInteger" not in kinds
    cosine = median_cosine(_outputs([tmp_path / "source.onnx"], images), _outputs([file], images))
    assert cosine is not None and cosine > 0.95

    openvino = OpenVinoQuantizer(QuantizerInput(tmp_path / "source.onnx", [image[None] for image in images], tmp_path / "work"))
    assert not openvino.attempts("any")[0].dynamic
    files = openvino.quantize(Int8Settings(), tmp_path)
    cosine = median_cosine(_outputs([tmp_path / "source.onnx"], images), _outputs(files, images))
    assert cosine is not None and cosine > 0.9


@pytest.mark.slow
def test_the_accuracy_aware_search_keeps_the_accuracy(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    from edgetl.data.loading import truth_of
    from edgetl.export.quantize.attempts import AccuracyControl, MeasurementImages

    images = _unseen(run)
    samples = stratified(run.samples("val"), 64)
    plain = _outputs([bundle.path / "onnx-fp32/1/model.onnx"], images)
    quantizer = OpenVinoQuantizer(
        QuantizerInput(
            bundle.path / "onnx-fp32/1/model.onnx",
            _calibration(run),
            tmp_path,
            control=AccuracyControl(lambda: MeasurementImages(images, plain, truth_of(samples)), max_drop=0.0),
        )
    )
    found = _outputs(quantizer.quantize(Int8Settings(controlled=True), tmp_path), images)
    truth = truth_of(samples)
    assert (found.argmax(axis=1) == truth).mean() >= (plain.argmax(axis=1) == truth).mean() - 0.02
