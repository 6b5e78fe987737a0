"""Pixel input: ``edgetl export --input uint8``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetl.core.bundle import Bundle
from edgetl.core.images.decode import load_image
from edgetl.core.manifest import Manifest
from edgetl.core.preprocess import PreprocessSpec, normalize, pixels_of, to_pixels
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.measure.config import BenchConfig
from edgetl.measure.stages import measure_bundle
from edgetl.runtime.evaluation import EvaluationConfig, evaluate_bundle
from edgetl.runtime.predictor import load
from edgetl.runtime.verify import verify
from edgetl.train.artifacts.run import Run
from tests.command import edgetl
from tests.ecosystem import agreement, model_api

EXACT = ("onnx-fp32", "openvino-fp32")


@pytest.fixture(scope="module")
def pixel_bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Bundle of the digits with uint8 input. The gate has a wide limit, because the quantization search is not tested here."""
    config = ExportConfig(precisions=("fp32", "fp16", "int8"), max_drop=0.1, calibration_images=100, input="uint8")
    return export_bundle(run.path, config, tmp_path_factory.mktemp("bundles") / "pixels")


def test_every_file_has_uint8_input_and_the_manifest_records_it(pixel_bundle: Bundle) -> None:
    assert len(pixel_bundle.manifest.variants) == 6
    for variant in pixel_bundle.manifest.variants:
        assert variant.input_form == "uint8" and variant.input_shape(pixel_bundle.manifest.preprocess) == (48, 48, 3)
        if variant.format == "onnx":
            path = pixel_bundle.path / variant.files[0].path
            onnx.checker.check_model(onnx.load(path))
            (port,) = onnxruntime.InferenceSession(path).get_inputs()
            assert (port.name, port.type, port.shape[1:]) == ("input", "tensor(uint8)", [48, 48, 3]) and isinstance(port.shape[0], str)
        else:
            (found,) = ov.Core().read_model(pixel_bundle.path / variant.name / "1/model.xml").inputs
            assert found.get_names() == {"input"} and found.element_type == ov.Type.u8
            assert found.partial_shape == ov.PartialShape([-1, 48, 48, 3])


def test_uint8_input_gives_the_scores_of_float_input(pixel_bundle: Bundle, bundle: Bundle) -> None:
    for golden, other in zip(pixel_bundle.manifest.golden, bundle.manifest.golden, strict=True):
        for name in EXACT:
            np.testing.assert_allclose(golden.scores[name], other.scores[name], atol=1e-5)


def test_normalization_precedes_the_quantized_graph(pixel_bundle: Bundle) -> None:
    graph = onnx.load(pixel_bundle.path / "onnx-int8/1/model.onnx").graph
    assert [node.op_type for node in graph.node[:4]] == ["Transpose", "Cast", "Sub", "Mul"]
    (first,) = [node for node in graph.node if "edgetl.normalized" in node.input]
    assert first.op_type == "QuantizeLinear"


def test_device_commands_work_with_uint8_input(pixel_bundle: Bundle, digits: Path) -> None:
    assert len(verify(pixel_bundle.path).checked) == 6
    result = evaluate_bundle(pixel_bundle.path, digits, EvaluationConfig(variant="onnx-fp32", threads=1))
    assert (
        result.result.accuracy
        == evaluate_bundle(pixel_bundle.path, digits, EvaluationConfig(variant="openvino-fp32", threads=1)).result.accuracy
    )
    (timed,) = measure_bundle(pixel_bundle.path, BenchConfig(variants=("onnx-fp32",), threads=1, runs=10)).variants
    assert timed.infer.n == 10
    image = next(digits.rglob("*.png"))
    single = load(pixel_bundle, variant="onnx-fp32").predict(image)
    assert single == load(pixel_bundle, variant="onnx-fp32").predict([image] * 17)[16]
    assert "uint8 [batch, H, W, 3]" in " ".join(edgetl("inspect", pixel_bundle.path).stdout.split())
    assert "Input of the files: uint8" in pixel_bundle.read(pixel_bundle.manifest.card).decode()


def test_model_api_does_not_normalize_uint8_input_again(pixel_bundle: Bundle, run: Run) -> None:
    properties = {item.key for item in onnx.load(pixel_bundle.path / "onnx-fp32/1/model.onnx").metadata_props}
    assert "model_info labels" in properties and not {"model_info mean_values", "model_info scale_values"} & properties
    photos = [sample.path for sample in run.samples("test")]
    expected = [prediction.label or "" for prediction in load(pixel_bundle, variant="openvino-fp32", threads=1).predict(photos)]
    pixels = [np.asarray(to_pixels(load_image(path), pixel_bundle.manifest.preprocess)) for path in photos]
    assert agreement(model_api(pixel_bundle.path / "openvino-fp32/1/model.xml")(pixels), expected) >= 0.98


def test_the_manifest_records_float_input(bundle: Bundle) -> None:
    assert Manifest.model_validate_json((bundle.path / "manifest.json").read_bytes()).variants[0].input_form == "float"


def test_an_unknown_input_form_is_an_error(run: Run, tmp_path: Path) -> None:
    done = edgetl("export", run.path, "--out", tmp_path / "b", "--input", "int8")
    assert done.returncode == 2 and "'--input'" in done.stderr and "is not one of: float, uint8" in done.stderr, done.stderr


@given(st.lists(st.floats(0.05, 0.95), min_size=3, max_size=3), st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3))
def test_pixels_of_inverts_normalize_exactly(mean: list[float], std: list[float]) -> None:
    spec = PreprocessSpec(input_size=(16, 16), mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))
    pixels = np.stack([np.roll(np.arange(256, dtype=np.uint8), shift).reshape(16, 16) for shift in range(3)], axis=2)
    batch = np.empty((1, 3, 16, 16), np.float32)
    normalize(Image.fromarray(pixels), spec, batch[0])
    np.testing.assert_array_equal(pixels_of(batch, spec)[0], pixels)
