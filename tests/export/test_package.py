from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
import torch

from edgetl.cli.tables import failed_attempt_lines
from edgetl.core.bundle import Bundle
from edgetl.core.contract import Outcome
from edgetl.core.manifest import Rejected
from edgetl.core.preprocess import PreprocessSpec, preprocess
from edgetl.core.progress import Progress
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import Sample
from edgetl.data.loading import PixelSet, stratified
from edgetl.errors import AccuracyGateError, ConfigError, DataError
from edgetl.export import package
from edgetl.export.config import ExportConfig
from edgetl.export.context import ExportContext, prepare
from edgetl.export.gate.agreement import GateSet
from edgetl.export.gate.images import ExportImages
from edgetl.export.package import export_bundle
from edgetl.export.quantize.attempts import Int8Settings
from edgetl.export.quantize.ort_quantizer import OnnxQuantizer
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.run import Run

NAMES = {f"{format_}-{precision}" for format_ in ("onnx", "openvino") for precision in ("fp32", "fp16", "int8")}


def test_a_bundle_contains_every_requested_variant(bundle: Bundle) -> None:
    assert {variant.name for variant in bundle.manifest.variants} == NAMES
    assert not bundle.manifest.rejected


def test_variants_are_sorted_by_latency_or_by_accuracy_on_a_busy_host(bundle: Bundle) -> None:
    manifest = bundle.manifest
    times = [variant.median_ms for variant in manifest.variants]
    accuracies = [variant.validation.value for variant in manifest.variants]
    assert min(times) > 0
    if manifest.sorted_by == "time":
        assert times == sorted(times) and not any(variant.load for variant in manifest.variants)
    else:
        assert accuracies == sorted(accuracies, reverse=True) and any(variant.load for variant in manifest.variants)


def test_int8_files_are_smaller_and_contain_int8_weights(bundle: Bundle) -> None:
    sizes = {variant.name: variant.size_bytes for variant in bundle.manifest.variants}
    for format_ in ("onnx", "openvino"):
        assert sizes[f"{format_}-int8"] < 0.45 * sizes[f"{format_}-fp32"]
        assert sizes[f"{format_}-fp16"] < 0.62 * sizes[f"{format_}-fp32"]
    model = onnx.load(bundle.path / "onnx-int8/1/model.onnx")
    assert any(item.data_type == onnx.TensorProto.INT8 for item in model.graph.initializer)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}


def test_fp16_files_have_float32_inputs_and_outputs(bundle: Bundle) -> None:
    model = onnx.load(bundle.path / "onnx-fp16/1/model.onnx")
    kinds = [value.type.tensor_type.elem_type for value in (model.graph.input[0], model.graph.output[0])]
    assert kinds == [onnx.TensorProto.FLOAT] * 2
    assert any(item.data_type == onnx.TensorProto.FLOAT16 for item in model.graph.initializer)


def test_onnx_files_have_embedded_weights_and_a_dynamic_batch(bundle: Bundle) -> None:
    for precision in ("fp32", "fp16", "int8"):
        model = onnx.load(bundle.path / f"onnx-{precision}/1/model.onnx", load_external_data=False)
        onnx.checker.check_model(model)
        assert not any(item.external_data for item in model.graph.initializer)
        assert model.graph.input[0].name == "input" and model.graph.output[0].name == "logits"
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_files_contain_metadata_for_intel_model_api(bundle: Bundle) -> None:
    spec = bundle.manifest.preprocess
    means = " ".join(f"{value * 255:g}" for value in spec.mean)
    for precision in ("fp32", "fp16", "int8"):
        properties = {item.key: item.value for item in onnx.load(bundle.path / f"onnx-{precision}/1/model.onnx").metadata_props}
        assert properties["model_info model_type"] == "Classification" and properties["model_info mean_values"] == means
        info = ov.Core().read_model(bundle.path / f"openvino-{precision}/1/model.xml").get_rt_info(["model_info"])
        assert str(info["labels"]) == " ".join(bundle.manifest.labels)
        assert json.loads(properties["edgetl preprocess"])["input_size"] == list(spec.input_size)


def test_calibration_uses_training_images_and_the_preprocessing_of_the_bundle(bundle: Bundle, run: Run) -> None:
    import hashlib

    chosen = stratified(run.samples("train"), 100)
    digest = hashlib.sha256("\n".join(sorted(sample.content for sample in chosen)).encode()).hexdigest()
    calibration = bundle.manifest.calibration
    assert calibration is not None
    assert (calibration.n, calibration.images_sha256) == (100, digest)
    assert calibration.preprocess_sha256 == bundle.manifest.preprocess.digest()


def test_golden_images_are_validation_images_with_scores_of_every_variant(bundle: Bundle, run: Run) -> None:
    validation = {path.read_bytes() for path in (sample.path for sample in run.samples("val"))}
    for golden in bundle.manifest.golden:
        assert bundle.read(golden.image) in validation and set(golden.scores) == NAMES


def test_seen_images_are_the_training_and_validation_images(bundle: Bundle, run: Run) -> None:
    seen = bundle.seen_images()
    kept = {int(entry.content[:16], 16): entry.part for entry in run.splits().entries}
    assert seen == {prefix for prefix, part in kept.items() if part != "test"}


def test_exported_scores_equal_the_trained_models(bundle: Bundle, run: Run) -> None:
    model = run.load_model()
    for sample in run.samples("test")[:20]:
        with torch.inference_mode():
            expected = torch.softmax(model(torch.from_numpy(preprocess(sample.path, run.record.preprocess)[None])), 1)[0].numpy()
        for name in ("onnx-fp32", "openvino-fp32"):
            np.testing.assert_allclose(load(bundle, variant=name).predict(sample.path).scores, expected, atol=1e-4)


@pytest.fixture
def wrong_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inject a fault: measure the int8 ranges on images of another scale."""

    def prepare_with_wrong_scale(run: Run, config: ExportConfig, work: Path, progress: Progress) -> ExportContext:
        context = prepare(run, config, work, progress)
        pixels = context.calibration.spec.model_copy(update={"std": (25.0, 25.0, 25.0)})
        context.calibration = PixelSet(context.calibration.samples, pixels)
        return context

    monkeypatch.setattr(package, "prepare", prepare_with_wrong_scale)
    monkeypatch.setattr(OnnxQuantizer, "attempts", lambda *_: [Int8Settings()])  # later attempts would correct the fault


def test_a_rejected_variant_is_an_error_with_its_figures_and_nothing_is_written(run: Run, tmp_path: Path, wrong_calibration: None) -> None:
    config = ExportConfig(formats=("onnx",), precisions=("int8",))
    with pytest.raises(AccuracyGateError, match=r"onnx-int8: .*--allow-missing") as caught:
        export_bundle(run.path, config, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
    assert [(row["variant"], row["result"]) for row in caught.value.rows] == [("onnx-int8", "gate")] and caught.value.rows[0]["reason"]
    (line,) = failed_attempt_lines([Outcome.model_validate(row) for row in caught.value.rows])
    assert line.startswith("onnx-int8: 8-bit weights: accuracy 0.") and ": rejected: " in line


def test_strict_without_enough_images_fails_before_the_search(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxQuantizer, "attempts", lambda *_: pytest.fail("no quantization is needed"))
    config = ExportConfig(formats=("onnx",), precisions=("fp32", "int8"), strict=True, gate_images=20)
    with pytest.raises(AccuracyGateError, match=r"at least 163 validation images for .*, and there are 20\..*Nothing was written"):
        export_bundle(run.path, config, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
    manifest = export_bundle(run.path, config.model_copy(update={"allow_missing": True}), tmp_path / "bundle").manifest
    assert [item.name for item in manifest.variants] == ["onnx-fp32"]
    assert {item.name for item in manifest.rejected} == {"onnx-int8", "onnx-fp16"} and "163" in manifest.rejected[0].reason


def test_allow_missing_keeps_passing_variants_and_records_rejected_ones(run: Run, tmp_path: Path, wrong_calibration: None) -> None:
    config = ExportConfig(formats=("onnx",), precisions=("fp32", "int8"), allow_missing=True)
    manifest = export_bundle(run.path, config, tmp_path / "bundle").manifest
    assert {variant.name for variant in manifest.variants} == {"onnx-fp32", "onnx-fp16"}, "fp16 replaces int8"
    rejected = manifest.rejected[0]
    assert rejected.name == "onnx-int8" and len(rejected.attempts) == 1 and not any(attempt.passed for attempt in rejected.attempts)


def test_missing_images_are_an_error_that_names_the_data_option(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        export_bundle(run.path, ExportConfig(data=tmp_path / "gone"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_moved_images_are_found_with_data(run: Run, digits: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(digits, moved)
    bundle = export_bundle(run.path, ExportConfig(formats=("openvino",), precisions=("fp32",), data=moved), tmp_path / "bundle")
    assert [variant.name for variant in bundle.manifest.variants] == ["openvino-fp32"]


def test_an_existing_bundle_is_replaced_only_with_overwrite(run: Run, bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="--overwrite"):
        export_bundle(run.path, ExportConfig(), bundle.path)


def test_the_card_lists_every_variant_with_its_interval_and_n(bundle: Bundle) -> None:
    card = bundle.read(bundle.manifest.card).decode()
    for variant in bundle.manifest.variants:
        assert f"| {variant.name} |" in card and f"{variant.validation.value:.3f}" in card
    assert "n = " in card


@pytest.mark.parametrize(
    ("reason", "training", "present", "absent"),
    [
        ("limit --max-drop 0.0001 with --strict", 24, "add validation images, or omit --strict", "--num-samples"),
        ("limit --max-drop 0.01", 24, "accept a larger accuracy drop with --max-drop", "--num-samples"),
        ("limit --max-drop 0.01", 900, "--num-samples (now 24 of 900 training images)", "--strict"),
    ],
    ids=["strict", "all-images-used", "more-images"],
)
def test_remedies_for_a_rejected_variant_fit_its_reason(tmp_path: Path, reason: str, training: int, present: str, absent: str) -> None:
    samples = [Sample(tmp_path / f"{number}.png", 0, f"{number:064x}") for number in range(training)]
    spec = PreprocessSpec(input_size=(8, 8))
    gate = GateSet(PixelSet(samples[:4], spec), np.zeros((4, 2), np.float32), OutputDecoding(labels=("a", "b")))
    images = ExportImages(fitting=samples, gate=samples[:4], unlabeled=(), reference=samples[:4])
    context: Any = SimpleNamespace(calibration=PixelSet(samples[:24], spec), images=images, config=ExportConfig(), gate=gate)
    contents = package._Contents(tmp_path, [], rejected=[Rejected(name="onnx-int8", reason=reason)])
    text = package._remedies(context, contents)
    assert present in text and absent not in text and "eplace int8 by fp16 with --allow-missing" in text
