"""Cross-validation with few images: splits, figures of the run, and the accuracy gate of its export."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgetl.cli.tables import certainty_lines
from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import scan
from edgetl.data.loading import PixelSet, groups_of
from edgetl.data.predictions import PREDICTIONS_NAME, parse_predictions
from edgetl.export.config import ExportConfig
from edgetl.export.gate.agreement import GateSet, evaluate_file, trained_logits
from edgetl.export.package import export_bundle
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.writer import write_record
from edgetl.train.config.options import CalibrationConfig, TrainConfig
from edgetl.train.config.tasks import pool_few_images, split_images
from edgetl.train.workflows.runs.calibrate import calibrate_run
from edgetl.train.workflows.train import train
from tests.built import built
from tests.conftest import write_colors


def write_few_digits(root: Path, digits: Path, *, classes: int = 10, each: int = 9) -> None:
    """Copy some images of each digit."""
    for folder in sorted(digits.iterdir())[:classes]:
        (root / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:each]:
            shutil.copy(file, root / folder.name)


@pytest.fixture(scope="module")
def few_run(digits: Path) -> Run:
    folder = built("few-digits", lambda root: write_few_digits(root, digits))
    config = TrainConfig.from_options(input_size=(32, 32), crop_pct=1.0, augmented_views=2)
    return open_run(built("runs/few-digits", lambda out: train(folder, config, out)))


@pytest.fixture(scope="module")
def few_bundle(few_run: Run) -> Bundle:
    config = ExportConfig(formats=("onnx",), precisions=("fp32",))
    return open_bundle(built("bundles/few-digits", lambda out: export_bundle(few_run.path, config, out)))


def test_training_on_few_images_reports_out_of_fold_figures_of_all_training_images(few_run: Run) -> None:
    record = few_run.record
    assert record.folds == 5
    assert record.images == {"train": 80, "val": 0, "test": 10}
    assert record.validation.accuracy.n == 80
    outputs, labels = few_run.out_of_fold_outputs(), [sample.label for sample in few_run.samples("train")]
    assert record.validation.accuracy.value == pytest.approx((outputs.argmax(axis=1) == labels).mean())
    rows = parse_predictions(few_run.read(PREDICTIONS_NAME).decode())
    assert [row.split for row in rows] == ["train"] * 80 + ["test"] * 10


def test_out_of_fold_accuracy_is_lower_than_the_accuracy_on_fitted_images(few_run: Run) -> None:
    images = PixelSet(few_run.samples("train"), few_run.record.preprocess)
    fitted = trained_logits(few_run.load_model(), images)
    labels = np.array([sample.label for sample in images.samples])
    assert (fitted.argmax(axis=1) == labels).mean() > few_run.record.validation.accuracy.value


def test_calibration_of_a_cross_validated_run_uses_its_out_of_fold_outputs(few_run: Run, tmp_path: Path) -> None:
    shutil.copytree(few_run.path, tmp_path / "run")
    write_record(tmp_path / "run", few_run.record)
    done = calibrate_run(tmp_path / "run", CalibrationConfig(calibrate=True)).record
    assert done.calibration is not None and done.calibration.n == 80
    assert done.validation.accuracy == few_run.record.validation.accuracy


def test_export_of_a_cross_validated_run_states_the_out_of_fold_accuracy(few_run: Run, few_bundle: Bundle) -> None:
    manifest = few_bundle.manifest
    assert manifest.folds == 5
    assert manifest.trained == few_run.record.validation.score == manifest.variants[0].validation
    assert manifest.reference is not None and manifest.reference.n == 80
    card = few_bundle.read(manifest.card).decode()
    assert "cross-validated (5 folds)" in card and "- Trained model on the cross-validated images: accuracy" in card
    assert "validation images" not in card.lower()
    assert certainty_lines(manifest.model_copy(update={"max_changed": 0}))[0].startswith("0 of 80 cross-validated images may change")


@pytest.mark.parametrize(
    ("options", "pooled"),
    [
        ({}, True),
        ({"strategy": "partial"}, True),
        ({"strategy": "partial", "patience": 3}, False),
        ({"strategy": "partial", "wise_ft": True}, False),
        ({"strategy": "partial", "replay": "run"}, False),
        ({"val": 0.15}, False),
        ({"strategy": "compare"}, False),
        ({"strategy": "full"}, False),
        ({"head": "knn"}, False),
    ],
)
def test_options_select_cross_validation_or_a_validation_split(colors: Path, options: dict[str, object], pooled: bool) -> None:
    config = TrainConfig.from_options(**options)
    splits = split_images(scan(colors), config)
    found = pool_few_images(splits, config)
    assert found.cross_validated is pooled
    assert {sample.path for sample in (*found.train, *found.val)} == {sample.path for sample in (*splits.train, *splits.val)}
    assert bool(found.val) is not pooled


def test_fine_tuning_with_few_images_trains_on_all_and_predicts_each_in_its_fold(digits: Path, tmp_path: Path) -> None:
    write_few_digits(tmp_path / "digits", digits, classes=2, each=30)
    config = TrainConfig.from_options(input_size=(64, 64), strategy="partial", epochs=1, crop_pct=1.0, workers=0, augmented_views=1)
    stages: list[str] = []
    run = train(tmp_path / "digits", config, tmp_path / "run", progress=lambda stage, done, total: stages.append(stage))
    record = run.record
    assert record.plan.strategy == "partial" and record.plan.steps > 0
    assert record.folds == 5 and record.images["val"] == 0
    assert {stage.partition(":")[0] for stage in stages if stage.startswith("fold")} == {f"fold {number} of 5" for number in range(1, 6)}
    outputs, labels = run.out_of_fold_outputs(), [sample.label for sample in run.samples("train")]
    assert record.validation.accuracy.value == pytest.approx((outputs.argmax(axis=1) == labels).mean())
    assert record.validation.accuracy.value > 0.8 and record.validation.accuracy.n == len(labels)
    assert "val_loss" not in run.read("metrics.jsonl").decode()


def test_class_with_copies_of_one_image_keeps_the_validation_split(colors: Path) -> None:
    first, second, *others = sorted((colors / "red").iterdir())
    shutil.copy(first, second)
    for file in others:
        file.unlink()
    config = TrainConfig()
    assert not pool_few_images(split_images(scan(colors), config), config).cross_validated


def test_ready_made_validation_images_are_kept(tmp_path: Path) -> None:
    for index, part in enumerate(("train", "val")):
        write_colors(tmp_path / part, 6, seed=index)
    config = TrainConfig()
    assert not pool_few_images(split_images(scan(tmp_path), config), config).cross_validated


def test_copies_of_an_image_are_in_one_group(colors: Path) -> None:
    samples = scan(colors).samples[:4]
    assert groups_of(samples, {}) is None
    groups = groups_of(samples, {samples[1].content: samples[0].content, samples[0].content: samples[0].content})
    assert groups is not None and groups.tolist() == [0, 0, 1, 2]


def test_gate_of_a_cross_validated_run_rejects_a_change_that_fitted_margins_hide(colors: Path) -> None:
    samples = scan(colors).samples[:20]
    images = PixelSet(samples, PreprocessSpec(input_size=(8, 8)))
    truth = np.eye(3, dtype=np.float32)[[sample.label for sample in samples]]
    fitted, held_out = 9 * truth, 0.5 * truth
    decoding = OutputDecoding(labels=("blue", "green", "red"))
    plain = GateSet(images, fitted, decoding)
    shifted = GateSet(images, held_out, decoding, offset=held_out - fitted)
    changed = iter([fitted + np.roll(truth, 1, axis=1)] * 2)
    results = [evaluate_file(lambda batch: next(changed), gate, ExportConfig(), exact=False) for gate in (plain, shifted)]
    assert not results[0].reason
    assert results[1].reason.startswith("accuracy drops by 1.0000")
