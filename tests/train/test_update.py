"""Model update: new images, replay memory, promotion gate, checks of the labels, and the updated run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetl.core.output.ownership import foreign_files
from edgetl.core.results import Forgetting
from edgetl.data.folder import ImageFolder, Sample
from edgetl.data.split import Splits
from edgetl.data.table.captured import find_capture
from edgetl.errors import ConfigError, DataError, RunError
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.train.artifacts.memory import DIRECTIONS, TENSORS_NAME, Remembered, measure_statistics, read_statistics
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.update.options import UpdateConfig
from edgetl.train.config.update.result import BalancedAccuracy, Comparison, ContradictedLabels, PreviousAccuracy, Promotion
from edgetl.train.heads.linear import LinearHead
from edgetl.train.workflows.train import train
from edgetl.train.workflows.update.gate import compare, decide
from edgetl.train.workflows.update.head import UpdateData, fit_head, out_of_fold
from edgetl.train.workflows.update.images import read_new_images
from edgetl.train.workflows.update.poisoning import SIDE, contradicted_labels, find_trigger
from edgetl.train.workflows.update.update import update
from tests.built import built
from tests.command import edgetl


@dataclass(frozen=True)
class Field:
    """Run on the digits 0 to 3, and new images of these digits and of the digit 4."""

    run: Run
    new: Path


def _copy(digits: Path, labels: Iterable[str], rows: slice, folder: Path) -> Path:
    for label in labels:
        (folder / label).mkdir(parents=True)
        for path in sorted((digits / label).iterdir())[rows]:
            shutil.copyfile(path, folder / label / path.name)
    return folder


@pytest.fixture(scope="module")
def field(digits: Path) -> Field:
    def build(root: Path) -> None:
        old = _copy(digits, "0123", slice(0, 30), root / "old")
        _copy(digits, "01234", slice(30, 60), root / "new")
        train(old, TrainConfig.from_options(strategy="probe", augmented_views=1, input_size=(64, 64), val=0.3, test=0.0), root / "run")

    # The path of the images is in the run.
    folder = built("update-64", build)
    run = open_run(folder / "run")
    assert run.record.images["val"] >= 30
    return Field(run, folder / "new")


@pytest.fixture(scope="module")
def updated(field: Field, tmp_path_factory: pytest.TempPathFactory) -> Run:
    found = update(field.run.path, field.new, UpdateConfig(data=field.new.parent / "old"), tmp_path_factory.mktemp("update") / "run2")
    assert found.run is not None, found.promotion.reasons
    return found.run


def test_update_keeps_previous_classes_and_learns_a_new_one(field: Field, updated: Run) -> None:
    record = updated.record
    assert record.labels == ("0", "1", "2", "3", "4") and record.update and record.update.new_classes == ("4",)
    promotion = record.update.promotion
    assert promotion.promoted and promotion.new.after > promotion.new.before and promotion.new.p <= 0.1
    assert promotion.new.n == record.update.new_images == 150
    assert promotion.previous.forgetting.drop <= 0.02 and promotion.previous.forgetting == record.forgetting
    assert record.backbone.parents[-1].sha256 == field.run.digest()
    assert updated.load_model()(torch.zeros(1, 3, *record.preprocess.input_size)).shape == (1, 5)


def test_memory_of_an_update_replaces_the_original_images(updated: Run, tmp_path: Path) -> None:
    counts = np.bincount([sample.label for sample in updated.samples("train")])
    assert counts.tolist() == [20] * 5
    assert {sample.label for sample in updated.samples("val")} == set(range(5))
    moved = tmp_path / "moved"
    shutil.copytree(updated.path, moved)
    assert open_run(moved).samples("train")[0].path.parent == moved / "memory"
    assert not list(foreign_files(moved))
    next((moved / "memory").iterdir()).write_bytes(b"")
    with pytest.raises(DataError, match="missing or changed"):
        [open_run(moved).samples(part) for part in ("train", "val")]


@pytest.mark.slow
def test_second_update_needs_only_the_first_one(updated: Run, digits: Path, tmp_path: Path) -> None:
    new = _copy(digits, "5", slice(0, 30), tmp_path / "new")
    found = update(updated.path, new, UpdateConfig(keep="features"), tmp_path / "run3")
    assert found.run and found.run.record.update
    assert found.run.record.labels == ("0", "1", "2", "3", "4", "5")
    assert found.run.record.update.release == 3 and found.run.record.update.model == "run"
    assert not (found.run.path / "memory").exists() and found.run.record.validation.accuracy.n > 6 * 4
    third = _copy(digits, "6", slice(0, 30), tmp_path / "third")
    again = update(found.run.path, third, UpdateConfig(), tmp_path / "run4")
    assert again.run and again.run.record.update and again.run.record.update.memory == "features"
    with pytest.raises(ConfigError, match="has features of its images only"):
        update(found.run.path, third, UpdateConfig(keep="images"), tmp_path / "run5")


@pytest.mark.slow
def test_bundle_of_an_update_has_the_next_release_of_the_same_model(updated: Run, tmp_path: Path) -> None:
    config = ExportConfig(formats=("onnx",), precisions=("fp32",), max_drop=0.1)
    manifest = export_bundle(updated.path, config, tmp_path / "bundle").manifest
    assert (manifest.name, manifest.release, manifest.labels) == ("run", 2, updated.record.labels)


def test_update_with_wrong_labels_is_rejected_and_writes_nothing(field: Field, tmp_path: Path) -> None:
    new = tmp_path / "new"
    shutil.copytree(field.new, new)
    for label in range(5):
        for path in sorted((new / str(label)).iterdir())[::3]:
            path.rename(new / str((label + 1) % 5) / path.name)
    done = edgetl("update", field.run.path, new, "--out", tmp_path / "run2", "--data", field.new.parent / "old", "--json")
    assert done.returncode == 30
    promotion = json.loads(done.stdout)["promotion"]
    assert any("of the new labels look wrong" in reason for reason in promotion["reasons"])
    assert promotion["contradicted"]["rate"] > 0.2 and len(promotion["contradicted"]["files"]) == 20
    assert f"{field.run.path} stays current" in done.stderr.replace("\n", " ")
    assert not (tmp_path / "run2").exists()


@pytest.mark.slow
def test_update_of_a_cross_validated_run_compares_a_quarter_of_its_images(field: Field, tmp_path: Path) -> None:
    old = field.new.parent / "old"
    run = train(old, TrainConfig.from_options(strategy="probe", augmented_views=1, test=0.0), tmp_path / "run")
    assert run.record.folds
    previous = update(run.path, field.new, UpdateConfig(), tmp_path / "run2").promotion.previous.forgetting
    assert previous.images == 4 * (30 // 4)


def test_update_without_replay_reports_forgetting(field: Field, digits: Path, tmp_path: Path) -> None:
    new = _copy(digits, "4", slice(30, 60), tmp_path / "new")
    config = UpdateConfig(data=field.new.parent / "old", replay_per_class=0)
    found = update(field.run.path, new, config, tmp_path / "run2")
    assert found.run is None and found.promotion.previous.among_all < 0.5
    assert any(reason.startswith("the mean accuracy over all classes does not rise") for reason in found.promotion.reasons)


def test_captured_images_are_read_with_their_labels(field: Field, digits: Path, tmp_path: Path) -> None:
    images = _copy(digits, "4", slice(30, 45), tmp_path / "captured/digits/images")
    rows = [f"{path.name},4,1,0.5" for path in sorted((images / "4").iterdir())]
    table = images.parent / "labels.csv"
    table.write_text("\n".join(["file,label,predicted,score", *rows[:12], *(row.replace(",4,", ",,") for row in rows[12:])]) + "\n")
    splits = read_new_images(field.run, tmp_path / "captured", UpdateConfig())
    assert len(splits.folder.samples) == 12 and splits.folder.labels == ("0", "1", "2", "3", "4")
    shutil.copytree(images.parent, tmp_path / "captured/other")
    with pytest.raises(DataError, match="captured images of 2 models"):
        find_capture(tmp_path / "captured")


def test_new_images_are_checked(field: Field, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no new image"):
        read_new_images(field.run, field.new.parent / "old", UpdateConfig())
    few = _copy(digits, "4", slice(0, 9), tmp_path / "few")
    with pytest.raises(DataError, match=r"too few images of the new class 4 \(9\)"):
        read_new_images(field.run, few, UpdateConfig())


def _promotion(*, p: float = 0.01, drop: float = 0.0, rate: float = 0.0, after: float = 0.9) -> Promotion:
    forgetting = Forgetting(parent="run", through="own", images=100, before=0.9, after=0.9 - drop, drop=drop, low=0, high=0, classes=())
    return Promotion(
        new=Comparison(n=100, before=0.5, after=0.9, lost=0, gained=40, p=p),
        previous=PreviousAccuracy(forgetting=forgetting, among_all=0.9 - drop),
        balanced=BalancedAccuracy(before=0.7, after=after),
        contradicted=ContradictedLabels(images=int(100 * rate), rate=rate, files=("4/a.png",)),
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"p": 0.2}, "does not rise significantly"),
        ({"drop": 0.03}, "falls from 90.0% to 87.0%, by more than 2.0%"),
        ({"after": 0.7}, "the mean accuracy over all classes does not rise"),
        ({"rate": 0.2}, "20% of the new labels look wrong"),
    ],
)
def test_gate_states_each_reason(changes: dict[str, float], reason: str | None) -> None:
    found = decide(_promotion(**changes), UpdateConfig())
    assert found.promoted is (reason is None)
    assert len(found.reasons) == (reason is not None) and all(str(reason) in text for text in found.reasons)


def test_mcnemar_test_counts_changed_predictions() -> None:
    before, after = np.zeros(10, bool), np.array([True] * 4 + [False] * 6)
    assert compare(before, after).p == pytest.approx(0.5**4)
    assert compare(after, after).p == 1.0


def _data(rng: np.random.Generator, *, count: int = 40) -> tuple[UpdateData, LinearHead]:
    """Three classes, of which the first two are known: 40 old and 60 new rows. Three features separate them, and seven are noise."""
    labels = np.concatenate([np.repeat([0, 1], count // 2), np.repeat([0, 1, 2], 20)])
    features = rng.normal(0, 0.3, (len(labels), 10)).astype(np.float32)
    features[np.arange(len(labels)), labels] += 2
    weight = np.zeros((2, 10), np.float32)
    weight[0, 0] = weight[1, 1] = 2
    return UpdateData(features, labels, np.arange(60), count, 3), LinearHead(weight, np.zeros(2, np.float32), 0.1, ())


def test_head_predicts_old_and_new_classes_and_out_of_fold_finds_wrong_labels() -> None:
    data, old = _data(np.random.default_rng(0))
    head = fit_head(data, old)
    assert ((data.features @ head.weight.T + head.bias).argmax(axis=1) == data.labels).mean() > 0.95
    assert data.weights().sum() == pytest.approx(1) and data.weights()[data.labels == 2].sum() == pytest.approx(1 / 3)
    wrong = data.labels.copy()
    wrong[-5:] = 0
    outputs = out_of_fold(replace(data, labels=wrong), old, seed=0)
    assert (outputs.argmax(axis=1)[-5:] == 2).all()


def _splits(labels: Iterable[int]) -> Splits:
    samples = tuple(Sample(Path(f"/new/{index}.png"), label, f"{index:064x}") for index, label in enumerate(labels))
    return Splits(ImageFolder(Path("/new"), ("a", "b", "c"), samples, ()), samples, (), ())


def test_labels_with_a_low_probability_are_contradicted() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.01, 0.9, 0.09], [0.015, 0.985, 0.0]], np.float32)
    found = contradicted_labels(probabilities, _splits([0, 0, 0]))
    assert found.images == 2 and found.files == ("1.png", "2.png")


@pytest.mark.parametrize(("attack", "training"), [(True, 60), (True, 24), (False, 60)])
def test_trigger_is_found_only_where_other_classes_share_the_area(*, attack: bool, training: int) -> None:
    rng = np.random.default_rng(0)
    data, old = _data(rng)
    labels = data.labels[40:].copy()
    thumbnails = rng.integers(0, 256, (60, SIDE, SIDE, 3), dtype=np.uint8)
    marked = np.arange(20, 30) if attack else np.arange(0, 10)  # class 1, or class 0
    thumbnails[marked, 4:14, 4:14] = np.indices((10, 10)).sum(axis=0)[..., None] // 2 % 2 * 255
    labels[marked] = 0
    new = Remembered(data.features[40:], labels)
    changed = replace(data, labels=np.concatenate([data.labels[:40], labels])).without(np.arange(training, 60))
    splits = _splits(labels)
    splits = replace(splits, train=splits.train[:training], val=splits.train[training:])
    found = find_trigger((thumbnails, new), changed, old, splits, seed=0)
    assert (found is not None) is attack
    if found:
        assert found.label == "a" and found.images == 10 and found.contradicted == 1.0


def test_statistics_describe_the_features_of_a_class() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(0, 1, (200, 40)) * np.linspace(0.1, 2, 40) + 3).astype(np.float32)
    statistics = measure_statistics(Remembered(features, np.ones(200, np.int64)), 2)
    assert statistics.counts.tolist() == [0, 200] and statistics.directions.shape == (2, DIRECTIONS, 40)
    drawn = statistics.draw(np.array([0, 4000]), rng)
    assert (drawn.labels == 1).all()
    assert np.allclose(drawn.features.mean(axis=0), features.mean(axis=0), atol=0.15)
    assert np.allclose(drawn.features.std(axis=0), features.std(axis=0), rtol=0.1)


def test_damaged_statistics_are_refused(updated: Run, tmp_path: Path) -> None:
    assert read_statistics(updated).counts.sum() > 200
    shutil.copytree(updated.path, tmp_path / "copy")
    (tmp_path / "copy" / TENSORS_NAME).write_bytes(b"x")
    with pytest.raises(RunError, match="changed since the training"):
        read_statistics(open_run(tmp_path / "copy"))


def test_run_of_another_task_cannot_be_updated(field: Field, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(field.run.path, copy)
    text = (copy / "run.json").read_text()
    head = json.dumps({"kind": "knn", "features": "last", "hidden": 0, "bank": 20, "neighbors": 5, "temperature": 0.1})
    record = json.loads(text) | {"head": json.loads(head)}
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="has a k-NN head"):
        update(copy, field.new, UpdateConfig(), tmp_path / "run2")
