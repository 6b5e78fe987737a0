from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from edgetl.core.bundle import Bundle
from edgetl.core.files.atomic import STAGING_MARK
from edgetl.core.metrics import evaluate_predictions
from edgetl.core.preprocess import PreprocessSpec
from edgetl.data.folder import scan
from edgetl.data.predictions import PREDICTIONS_NAME, parse_predictions
from edgetl.errors import ConfigError, DataError, RunError
from edgetl.runtime.evaluation import EvaluationConfig
from edgetl.train.artifacts.plots import class_table
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.inputs.augmentation import make_augmentation, mirrors_well
from edgetl.train.inputs.dataset import ImageDataset
from edgetl.train.workflows.runs.evaluate import evaluate_run
from edgetl.train.workflows.train import train


def test_run_folder_contains_the_documented_files(run: Run) -> None:
    names = {path.name for path in run.path.iterdir()}
    expected = {
        "run.json",
        "weights.safetensors",
        "config.json",
        "splits.json",
        "metrics.jsonl",
        "trained-images.bin",
        "selected-images.bin",
        "perceptual-hashes.bin",
        "confusion.png",
        "classes.csv",
        "predictions.csv",
        "curves.png",
    }
    assert names == expected
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= set(rows[0])
    assert run.record.test is not None and run.record.test.accuracy.value > 0.9


def test_predictions_of_a_run_give_its_metrics(run: Run) -> None:
    rows = parse_predictions(run.read(PREDICTIONS_NAME).decode())
    assert [row.file for row in rows] == [entry.path for part in ("val", "test") for entry in run.splits().entries if entry.part == part]
    for split, figures in (("val", run.record.validation), ("test", run.record.test)):
        assert figures is not None
        chosen = [row for row in rows if row.split == split]
        counts = Counter((row.label, row.prediction) for row in chosen)
        expected = {
            (true, predicted): count
            for true, line in zip(run.record.labels, figures.confusion, strict=True)
            for predicted, count in zip(run.record.labels, line, strict=True)
            if count
        }
        assert counts == expected
        assert all(0 < row.score <= 1 for row in chosen)


def test_timm_loads_a_run_as_local_dir_with_the_same_logits(run: Run) -> None:
    ours = run.load_model()
    theirs = timm.create_model(f"local-dir:{run.path}", pretrained=True).eval()
    images = torch.rand(3, 3, *run.record.preprocess.input_size)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
    assert (
        theirs.pretrained_cfg["mean"] == list(run.record.preprocess.mean)
        or tuple(theirs.pretrained_cfg["mean"]) == run.record.preprocess.mean
    )


@pytest.mark.parametrize("strategy", ["probe", "full"])
def test_same_seed_gives_the_same_run(colors: Path, tmp_path: Path, strategy: str) -> None:
    config = TrainConfig.from_options(
        backbone="test_resnet", pretrained=False, strategy=strategy, input_size=(32, 32), epochs=2, seed=3, val=0.25
    )
    one, two = (train(colors, config, tmp_path / name) for name in ("one", "two"))
    for name in ("weights.safetensors", "predictions.csv"):
        assert one.record.files[name] == two.record.files[name]
    assert one.record.validation == two.record.validation


def test_load_model_rejects_changed_weights(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    data = bytearray((copy / "weights.safetensors").read_bytes())
    data[-5] ^= 1
    (copy / "weights.safetensors").write_bytes(data)
    with pytest.raises(RunError, match=r"weights\.safetensors changed since the training"):
        open_run(copy).load_model()


def test_open_run_reports_a_bundle_and_a_missing_folder(bundle: Bundle) -> None:
    with pytest.raises(RunError, match="is a bundle, not a run"):
        open_run(bundle.path)
    with pytest.raises(RunError, match="does not exist"):
        open_run(bundle.path / "nothing")


def test_samples_reports_missing_and_changed_images(run: Run, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Give their folder with --data"):
        run.samples("train", tmp_path / "gone")
    copy = tmp_path / "copy"
    shutil.copytree(digits, copy)
    first = run.samples("val", copy)[0]
    shutil.copyfile(run.samples("train", copy)[0].path, first.path)
    with pytest.raises(DataError, match=first.path.name):
        run.samples("val", copy)


def test_train_does_not_replace_an_existing_run_without_overwrite(run: Run, colors: Path) -> None:
    with pytest.raises(ConfigError, match="--overwrite"):
        train(colors, TrainConfig.from_options(backbone="test_resnet", pretrained=False), run.path)


def test_failed_training_leaves_no_files(colors: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--std"):
        train(colors, TrainConfig.from_options(backbone="test_resnet", pretrained=False, std=(0.0, 1.0, 1.0)), tmp_path / "out" / "run")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(STAGING_MARK) or path.name == "run"]


def test_evaluate_run_on_its_training_folder_uses_only_the_test_split(run: Run, digits: Path, tmp_path: Path) -> None:
    saved = tmp_path / "new" / "test.csv"
    report = evaluate_run(run.path, digits, EvaluationConfig(save=saved))
    assert run.record.test is not None
    assert report.result.accuracy.n == run.record.images["test"]
    assert report.left_out == run.record.images["train"] + run.record.images["val"]
    np.testing.assert_allclose(report.result.accuracy.value, run.record.test.accuracy.value, atol=1e-9)
    rows = sorted(parse_predictions(saved.read_text()), key=lambda row: row.file)
    trained = [row for row in parse_predictions(run.read(PREDICTIONS_NAME).decode()) if row.split == "test"]
    assert {row.split for row in rows} == {"unseen"}
    assert [replace(row, split="test", score=0) for row in rows] == [
        replace(row, score=0) for row in sorted(trained, key=lambda row: row.file)
    ]


def test_augmentation_depends_on_the_seed(colors: Path) -> None:
    spec = PreprocessSpec(input_size=(16, 16))
    samples = scan(colors).samples
    augment = make_augmentation("light", spec, flip=False)
    first, again, other = (ImageDataset(samples, spec, augment=augment, seed=seed)[0][0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_images_are_flipped_unless_class_names_depend_on_direction() -> None:
    assert mirrors_well(["cat", "dog", "cardboard"]) and mirrors_well(["a", "rusty", "clean"])
    for names in (["0", "1", "2"], ["A", "B", "none"], ["turn left", "turn right"], ["stop_sign", "car"], ["arrow-up", "x", "other"]):
        assert not mirrors_well(names), names


def test_class_table_keeps_class_names_with_quotes_and_commas() -> None:
    names = ('6" pipe', "red, large", "plain")
    table = class_table(evaluate_predictions(np.array([0, 1, 2]), np.array([0, 1, 1]), names))
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["label"] for row in rows] == list(names) and [row["recall"] for row in rows] == ["1.0000", "1.0000", "0.0000"]
