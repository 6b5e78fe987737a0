"""Files that take pixels: ``edgetl export --input uint8``."""

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
from edgetl.measure.scenarios import BenchConfig, measure_bundle
from edgetl.runtime.evaluation import EvaluationConfig, evaluate_bundle
from edgetl.runtime.predictor import load
from edgetl.runtime.verify import verify
from edgetl.train.artifacts.run import Run
from tests.command import edgetl
from tests.ecosystem import agreement, model_api

EXACT = ("onnx-fp32", "openvino-fp32")


@pytest.fixture(scope="module")
def taken(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The digits' bundle with files that take pixels; the gate is wide, since the quantization search is not tested here."""
    config = ExportConfig(precisions=("fp32", "fp16", "int8"), max_drop=0.1, calibration_images=100, input="uint8")
    return export_bundle(run.path, config, tmp_path_factory.mktemp("bundles") / "pixels")


def test_every_file_takes_pixels_and_the_manifest_says_so(taken: Bundle) -> None:
    assert len(taken.manifest.variants) == 6
    for variant in taken.manifest.variants:
        assert variant.input_form == "uint8" and variant.input_shape(taken.manifest.preprocess) == (48, 48, 3)
        if variant.format == "onnx":
            path = taken.path / variant.files[0].path
            onnx.checker.check_model(onnx.load(path))
            (port,) = onnxruntime.InferenceSession(path).get_inputs()
            assert (port.name, port.type, port.shape[1:]) == ("input", "tensor(uint8)", [48, 48, 3]) and isinstance(port.shape[0], str)
        else:
            (found,) = ov.Core().read_model(taken.path / variant.name / "1/model.xml").inputs
            assert found.get_names() == {"input"} and found.element_type == ov.Type.u8
            assert found.partial_shape == ov.PartialShape([-1, 48, 48, 3])


def test_scores_are_those_of_the_float_form(taken: Bundle, bundle: Bundle) -> None:
    for golden, other in zip(taken.manifest.golden, bundle.manifest.golden, strict=True):
        for name in EXACT:
            np.testing.assert_allclose(golden.scores[name], other.scores[name], atol=1e-5)


def test_quantizers_saw_the_float_input(taken: Bundle) -> None:
    graph = onnx.load(taken.path / "onnx-int8/1/model.onnx").graph
    assert [node.op_type for node in graph.node[:4]] == ["Transpose", "Cast", "Sub", "Mul"]
    (first,) = [node for node in graph.node if "edgetl.normalised" in node.input]
    assert first.op_type == "QuantizeLinear"


def test_device_commands_work_on_such_a_bundle(taken: Bundle, digits: Path) -> None:
    assert len(verify(taken.path).checked) == 6
    result = evaluate_bundle(taken.path, digits, EvaluationConfig(variant="onnx-fp32", threads=1))
    assert (
        result.result.accuracy == evaluate_bundle(taken.path, digits, EvaluationConfig(variant="openvino-fp32", threads=1)).result.accuracy
    )
    (timed,) = measure_bundle(taken.path, BenchConfig(variants=("onnx-fp32",), threads=1, runs=10)).variants
    assert timed.infer.n == 10
    image = next(digits.rglob("*.png"))
    alone = load(taken, variant="onnx-fp32").predict(image)
    assert alone == load(taken, variant="onnx-fp32").predict([image] * 17)[16]
    assert "uint8 [batch, H, W, 3]" in " ".join(edgetl("inspect", taken.path).stdout.split())
    assert "Files take pixels: uint8" in taken.read(taken.manifest.card).decode()


def test_model_api_normalises_nothing_twice(taken: Bundle, run: Run) -> None:
    properties = {item.key for item in onnx.load(taken.path / "onnx-fp32/1/model.onnx").metadata_props}
    assert "model_info labels" in properties and not {"model_info mean_values", "model_info scale_values"} & properties
    photos = [sample.path for sample in run.samples("test")]
    ours = [answer.label or "" for answer in load(taken, variant="openvino-fp32", threads=1).predict(photos)]
    pixels = [np.asarray(to_pixels(load_image(path), taken.manifest.preprocess)) for path in photos]
    assert agreement(model_api(taken.path / "openvino-fp32/1/model.xml")(pixels), ours) >= 0.98


def test_the_manifest_records_the_form_of_the_input(bundle: Bundle) -> None:
    assert Manifest.model_validate_json((bundle.path / "manifest.json").read_bytes()).variants[0].input_form == "float"


def test_another_word_is_refused_by_the_option(run: Run, tmp_path: Path) -> None:
    done = edgetl("export", run.path, "--out", tmp_path / "b", "--input", "int8")
    assert done.returncode == 3 and "--input:" in done.stderr and "'float' or 'uint8'" in done.stderr


@given(st.lists(st.floats(0.05, 0.95), min_size=3, max_size=3), st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3))
def test_pixels_come_back_exactly_from_normalised_ones(mean: list[float], std: list[float]) -> None:
    spec = PreprocessSpec(input_size=(16, 16), mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))
    pixels = np.stack([np.roll(np.arange(256, dtype=np.uint8), shift).reshape(16, 16) for shift in range(3)], axis=2)
    batch = np.empty((1, 3, 16, 16), np.float32)
    normalize(Image.fromarray(pixels), spec, batch[0])
    np.testing.assert_array_equal(pixels_of(batch, spec)[0], pixels)
