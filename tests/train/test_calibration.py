"""Calibration: temperature, threshold of unknown images, and their place in runs and bundles."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from edgetl.core.metrics import evaluate
from edgetl.core.output_decoding import prediction_json, present_labels, scores_of, softmax
from edgetl.core.tasks import DecisionRule, OutputDecoding
from edgetl.errors import ConfigError
from edgetl.export.config import ExportConfig
from edgetl.export.model_card import run_lines
from edgetl.export.package import export_bundle
from edgetl.runtime.evaluation import evaluate_bundle
from edgetl.runtime.predictor import load
from edgetl.runtime.verify import verify
from edgetl.train import TrainConfig, train
from edgetl.train.artifacts.run import Run
from edgetl.train.config.calibration import LEAST_KNOWN, calibrate, choose_temperature, choose_threshold
from edgetl.train.config.options import CalibrationConfig
from edgetl.train.workflows.runs.calibrate import calibrate_run
from tests.command import edgetl
from tests.serve.serving import serving

CLASSES = OutputDecoding("classification", ("a", "b", "c", "d"))
LABELS = OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.5, 0.31)))


def overconfident(n: int, factor: float, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return true classes, and outputs that are ``factor`` times the logits of their probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, len(CLASSES.labels))).astype(np.float32)
    scores = softmax(logits).astype(np.float64)
    truth = (scores.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=scores.shape[1] - 1)
    return truth, logits * np.float32(factor)


def with_temperature(decoding: OutputDecoding, temperature: float) -> OutputDecoding:
    return replace(decoding, decision_rule=decoding.decision_rule.with_temperature(temperature))


def nll(temperature: float, truth: NDArray[np.int64], outputs: NDArray[np.float32]) -> float:
    found = evaluate(with_temperature(CLASSES, temperature), truth, outputs).reliability
    assert found is not None
    return found.nll


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_factor_of_overconfident_outputs(factor: float) -> None:
    temperature, notice = choose_temperature(CLASSES, *overconfident(4000, factor))
    assert temperature == pytest.approx(factor, rel=0.05) and not notice


def test_the_temperature_minimizes_the_log_loss() -> None:
    truth, outputs = overconfident(300, 2.0)
    temperature, _ = choose_temperature(CLASSES, truth, outputs)
    assert all(nll(temperature, truth, outputs) <= nll(temperature * change, truth, outputs) for change in (0.9, 0.99, 1.01, 1.1))


def test_calibration_lowers_the_calibration_error_of_other_images_and_keeps_their_accuracy() -> None:
    truth, outputs = overconfident(2000, 3.0)
    decoding, record = calibrate(CLASSES, truth, outputs, CalibrationConfig(calibrate=True), validation=1000)
    before, after = (evaluate(item, truth[1000:], outputs[1000:]) for item in (CLASSES, decoding))
    assert before.reliability is not None and after.reliability is not None
    assert after.reliability.ece < 0.05 < before.reliability.ece and after.accuracy == before.accuracy
    assert record.test_before == before.reliability and record.n == 1000 and record.notices == ()


def test_the_temperature_of_a_multi_label_model_keeps_its_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (4000, 2)).astype(np.float32)
    truth, outputs = (rng.random((4000, 2)) < scores_of(LABELS, logits)).astype(np.float64), 2.5 * logits
    decoding, _ = calibrate(LABELS, truth, outputs, CalibrationConfig(calibrate=True), validation=4000)
    assert decoding.decision_rule.temperature == pytest.approx(2.5, rel=0.1)
    assert np.array_equal(present_labels(decoding, scores_of(decoding, outputs)), present_labels(LABELS, scores_of(LABELS, outputs)))
    assert with_temperature(decoding, 1.0).decision_rule.thresholds == pytest.approx(LABELS.decision_rule.thresholds)


def test_thresholds_of_0_and_1_do_not_depend_on_the_temperature() -> None:
    ends = OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.0, 1.0)))
    assert with_temperature(ends, 2.0).decision_rule.thresholds == (0.0, 1.0)


def test_thresholds_near_0_and_1_can_be_converted_by_any_factor() -> None:
    ends = OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(1e-9, 1 - 1e-9), temperature=100.0))
    assert with_temperature(ends, 0.01).decision_rule.thresholds == pytest.approx((0.0, 1.0))


def test_a_second_calibration_replaces_the_first() -> None:
    truth, outputs = overconfident(400, 2.0)
    config = CalibrationConfig(calibrate=True)
    once, _ = calibrate(CLASSES, truth, outputs, config, validation=400)
    twice, record = calibrate(once, truth, outputs, config, validation=400)
    assert twice == once and record.validation_before == evaluate(CLASSES, truth, outputs).reliability


def test_validation_images_without_errors_keep_the_temperature_1() -> None:
    truth = np.arange(100) % 4
    temperature, notice = choose_temperature(CLASSES, truth, np.eye(4, dtype=np.float32)[truth])
    assert temperature == 1.0 and "almost no errors: the temperature stays 1" in notice


def test_outputs_that_predict_the_wrong_classes_keep_the_temperature_1() -> None:
    truth = np.arange(100) % 4
    temperature, notice = choose_temperature(CLASSES, truth, -np.eye(4, dtype=np.float32)[truth])
    assert temperature == 1.0 and "do not predict the labels of the 100 images" in notice


def test_few_validation_images_choose_nothing() -> None:
    truth, outputs = overconfident(49, 3.0)
    decoding, record = calibrate(CLASSES, truth, outputs, CalibrationConfig(calibrate=True, target_precision=0.9), validation=49)
    assert decoding == CLASSES
    assert [notice.split(" images")[0] for notice in record.notices] == ["49", "49"]


def test_the_threshold_is_the_smallest_with_the_target_precision() -> None:
    truth, outputs = overconfident(500, 1.0)
    threshold, notice = choose_threshold(CLASSES, truth, outputs, 0.9)
    scores, right = softmax(outputs).max(axis=1), outputs.argmax(axis=1) == truth
    assert not notice and right[scores >= threshold].mean() >= 0.9
    smaller = [value for value in scores if value < threshold]
    assert smaller and all(right[scores >= value].mean() < 0.9 for value in smaller)


def test_a_precision_that_all_images_have_needs_no_threshold() -> None:
    truth, outputs = overconfident(500, 1.0)
    threshold, notice = choose_threshold(CLASSES, truth, outputs, 0.3)
    assert threshold == 0.0 and "without a threshold: no image is rejected" in notice


def test_a_precision_that_no_threshold_reaches_is_reported_with_the_highest() -> None:
    truth, outputs = overconfident(500, 1.0)
    wrong = (outputs.argmax(axis=1) + 1) % 4
    truth[::2] = wrong[::2]
    threshold, notice = choose_threshold(CLASSES, truth, outputs, 0.99)
    assert threshold == 0.0 and f"with at least {LEAST_KNOWN} images above the threshold" in notice


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Path:
    shutil.copytree(run.path, tmp_path / "run")
    return tmp_path / "run"


def test_calibrating_a_run_changes_its_record_and_the_scores_of_its_predictions_only(copy: Path, run: Run) -> None:
    done = calibrate_run(copy, CalibrationConfig(calibrate=True, reject_below=0.6))
    record, before = done.record, run.record
    assert record.decision_rule.temperature != 1.0 and record.decision_rule.reject_below == 0.6
    assert record.test is not None and before.test is not None
    assert (record.validation.confusion, record.test.confusion) == (before.validation.confusion, before.test.confusion)
    assert record.calibration is not None and record.validation.rejection is not None
    assert record.validation.reliability is not None
    assert record.validation.reliability.nll < record.calibration.validation_before.nll
    assert {name for name in record.files if record.files[name] != before.files[name]} == {"predictions.csv"}
    rows, plain = (list(csv.DictReader(io.StringIO(item.read("predictions.csv").decode()))) for item in (done, run))
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in plain]
    assert [row["score"] for row in rows] != [row["score"] for row in plain]


def test_the_command_prints_the_figures_before_and_after(copy: Path) -> None:
    done = edgetl("calibrate", copy, "--reject-below", "0.6")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in ("validation", "test"):
        assert any(line.startswith(f"{name} expected calibration error 0.") and " to 0." in line for line in lines)
        assert any(line.startswith(f"{name} unknown below a score of 0.6000: coverage ") for line in lines)
    assert any(line.startswith("scores: temperature ") for line in lines) and lines[-1] == f"next: edgetl export {copy} --out BUNDLE"


def test_conflicting_calibration_options_leave_the_run_unchanged(copy: Path) -> None:
    before = (copy / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="--target-precision and --reject-below cannot be combined"):
        calibrate_run(copy, CalibrationConfig(target_precision=0.9, reject_below=0.5))
    assert (copy / "run.json").read_bytes() == before


def test_training_reports_a_calibration_that_the_images_do_not_allow(colors: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_options(
        backbone="test_resnet", pretrained=False, strategy="probe", input_size=(32, 32), calibrate=True, target_precision=0.9
    )
    record = train(colors, config, tmp_path / "run").record
    assert record.decision_rule == DecisionRule()
    assert record.calibration is not None and record.calibration.target_precision == 0.9 and len(record.calibration.notices) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrate": True, "task": "regression"}, "not regression, whose outputs are not probabilities"),
        ({"target_precision": 0.9, "task": "multi-label"}, "--target-precision is only for classification, not multi-label"),
        ({"target_precision": 0.9, "reject_below": 0.5}, "--target-precision and --reject-below cannot be combined"),
    ],
)
def test_calibration_options_that_the_task_does_not_have_are_conflicts(
    squares: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    table = {"labels": str(squares / "labels.csv")} if "task" in options else {}
    with pytest.raises(ConfigError, match=message):
        train(squares / "images", TrainConfig.from_options(**options, **table), tmp_path / "run")


@pytest.mark.slow
def test_an_exported_calibrated_run_has_the_same_scores_in_python_and_on_the_server(copy: Path, tmp_path: Path) -> None:
    run = calibrate_run(copy, CalibrationConfig(calibrate=True, reject_below=0.8))
    bundle = export_bundle(copy, ExportConfig(formats=("onnx",), precisions=("fp32",)), tmp_path / "bundle")
    assert bundle.manifest.decision_rule == run.record.decision_rule
    assert verify(bundle).checked[0].largest_difference < 1e-6
    evaluated = evaluate_bundle(bundle, Path(run.splits().root)).result
    assert run.record.test is not None and evaluated.rejection == run.record.test.rejection
    predictor = load(bundle)
    with serving(bundle.path) as server:
        for sample in run.samples("test")[:20]:
            reply = httpx.post(f"{server.url}/predict", content=sample.path.read_bytes(), timeout=None).json()
            expected = prediction_json(predictor.decoding, predictor.predict(sample.path))
            assert reply["label"] == expected["label"] and reply["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_the_model_card_has_the_calibration_and_the_coverage(copy: Path) -> None:
    record = calibrate_run(copy, CalibrationConfig(calibrate=True, reject_below=0.8)).record
    lines = run_lines(record, record.preprocess, record.validation.score)
    assert any("divided by the temperature" in line and "with uncalibrated scores" in line for line in lines)
    assert any(line.startswith("- Unknown images: highest score below 0.8. On the test images: coverage ") for line in lines)
