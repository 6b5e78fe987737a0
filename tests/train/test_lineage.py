"""Lineage: metrics never include an image that the run or one of its ancestors was trained or selected on."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgetl.cli.commands.train import show_run
from edgetl.core.bundle import hash_prefix
from edgetl.core.results import ClassForgetting, Forgetting
from edgetl.data.folder import ImageFolder, Sample
from edgetl.data.split import Splits
from edgetl.errors import DataError
from edgetl.train.artifacts.loading.lineage import parent_runs, seen_by_ancestors, without_seen
from edgetl.train.artifacts.run import Run
from edgetl.train.artifacts.seen_images import SELECTED_NAME, TRAINED_NAME, SeenImages
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.runs.evaluate import evaluate_run
from edgetl.train.workflows.runs.prune import prune_run
from edgetl.train.workflows.train import train
from tests.conftest import write_colors


def config(parent: Path | None = None, **changes: Any) -> TrainConfig:
    return TrainConfig.from_options(
        augmented_views=1, input_size=(32, 32), val=0.25, test=0.25, backbone=str(parent or "edgetl_small"), **changes
    )


def contents(run: Run, *parts: str) -> set[str]:
    return {entry.content for entry in run.splits().entries if entry.part in parts}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folders ``first/``, ``second/`` and ``both/``. ``both/`` has the images of the other two."""
    root = tmp_path_factory.mktemp("lineage")
    write_colors(root / "first", 12)
    write_colors(root / "second", 12, seed=1)
    shutil.copytree(root / "first", root / "both")
    for path in (root / "second").rglob("*.png"):
        shutil.copyfile(path, root / "both" / path.parent.name / f"second-{path.name}")
    return root


@pytest.fixture(scope="module")
def grandparent(root: Path) -> Run:
    return train(root / "first", config(), root / "grandparent")


@pytest.fixture(scope="module")
def parent(root: Path, grandparent: Run) -> Run:
    return train(root / "second", config(grandparent.path), root / "parent")


@pytest.fixture(scope="module")
def child(root: Path, parent: Run) -> Run:
    """Run on all images, with another seed than its ancestors."""
    moved = root / "moved"
    (root / "grandparent").rename(moved)  # not needed, because the parent has the record of its training images
    run = train(root / "both", config(parent.path, seed=7), root / "child")
    moved.rename(root / "grandparent")
    return run


def test_child_run_is_tested_on_images_that_no_ancestor_was_trained_or_selected_on(child: Run, parent: Run, grandparent: Run) -> None:
    tested, validated = contents(child, "test"), contents(child, "val")
    assert tested and validated
    for ancestor in (parent, grandparent):
        assert not tested & contents(ancestor, "train", "val")
        assert not validated & contents(ancestor, "train")
    excluded = child.splits().excluded
    assert excluded and sum(child.record.images.values()) + len(excluded) == 72
    assert child.record.test is not None and child.record.test.accuracy.n == len(tested)


def test_seen_images_cover_the_whole_lineage(child: Run, parent: Run, grandparent: Run) -> None:
    seen = child.seen_images()
    for run in (child, parent, grandparent):
        assert {hash_prefix(content) for content in contents(run, "train")} <= seen.trained
        assert {hash_prefix(content) for content in contents(run, "val")} <= seen.selected
    assert not {hash_prefix(content) for content in contents(child, "test")} & seen.all
    assert {TRAINED_NAME, SELECTED_NAME} <= child.record.files.keys()


def test_evaluation_excludes_images_seen_by_any_ancestor(root: Path, parent: Run, grandparent: Run) -> None:
    report = evaluate_run(parent.path, root / "both")
    unseen = contents(parent, "test") | contents(grandparent, "test")
    assert report.result.accuracy.n == len(unseen) and report.left_out == 72 - len(unseen)


def test_pruned_runs_keep_the_lineage(parent: Run, tmp_path: Path) -> None:
    assert prune_run(parent.path, tmp_path / "pruned").run.seen_images() == parent.seen_images()


def test_teacher_is_an_ancestor_and_random_weights_have_no_ancestor(parent: Run) -> None:
    assert seen_by_ancestors(TrainConfig().backbone, str(parent.path)) == parent.seen_images()
    weights = TrainConfig.from_options(backbone="test_resnet", weights=str(parent.path / "weights.safetensors"))
    for same in (config(parent.path), TrainConfig.from_options(backbone=f"local-dir:{parent.path}"), weights):
        assert [run.path for run in parent_runs(same.backbone)] == [parent.path]
    for other in (TrainConfig(), config(parent.path, pretrained=False)):
        assert seen_by_ancestors(other.backbone) == SeenImages()
    assert seen_by_ancestors(config(parent.path).backbone, scratch=True) == SeenImages()


def test_forgetting_is_measured_on_images_that_neither_run_has_seen(root: Path, grandparent: Run, tmp_path: Path) -> None:
    # Half of the parent's test images are also images of the child.
    shared = [entry for entry in grandparent.splits().entries if entry.part == "test"]
    data = tmp_path / "data"
    shutil.copytree(root / "second", data)
    for entry in shared[: len(shared) // 2]:
        shutil.copyfile(root / "first" / entry.path, data / Path(entry.path).parent / f"shared-{Path(entry.path).name}")
    run = train(data, config(grandparent.path), tmp_path / "run")
    seen = contents(run, "train", "val")
    unseen = [entry for entry in shared if entry.content not in seen]
    assert run.record.forgetting is not None
    assert len(shared) > run.record.forgetting.images == len(unseen) >= len(shared) // 2


def test_forgetting_is_not_measured_on_replayed_or_validation_images(
    root: Path, grandparent: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tested = tmp_path / "tested"
    for entry in (item for item in grandparent.splits().entries if item.part == "test"):
        (tested / entry.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / "first" / entry.path, tested / entry.path)
    steps = {"strategy": "full", "epochs": 1, "replay": str(tested)}
    run = train(root / "second", config(grandparent.path, **steps), tmp_path / "run")
    assert run.record.forgetting is None
    assert "is not measured: all of its 9 test images were seen" in caplog.text


def _splits(train: int, val: int, test: int) -> Splits:
    def part(number: int, count: int) -> tuple[Sample, ...]:
        return tuple(Sample(Path("d") / f"{number}{index}", 0, f"{number}{index:015x}{0:048x}") for index in range(count))

    return Splits(ImageFolder(Path("d"), ("a", "b"), (), ()), part(0, train), part(1, val), part(2, test))


def test_validation_images_of_an_ancestor_may_be_validation_images_again() -> None:
    splits = _splits(3, 2, 2)
    prefixes = [hash_prefix(sample.content) for sample in (*splits.val, *splits.test)]
    found = without_seen(splits, SeenImages(frozenset(prefixes[1:2]), frozenset(prefixes[:3])))
    assert (len(found.train), len(found.val), len(found.test)) == (3, 1, 1) and found.excluded == ("11", "20")
    assert without_seen(splits, SeenImages()) is splits


def test_validation_set_of_training_images_of_an_ancestor_is_refused() -> None:
    splits = _splits(3, 2, 2)
    with pytest.raises(DataError, match=r"0 of 2 test images and 2 of 2 validation images .*--seed"):
        without_seen(splits, SeenImages(frozenset(hash_prefix(sample.content) for sample in splits.val)))


def test_class_counts_as_forgotten_if_its_interval_is_above_0() -> None:
    classes = tuple(
        ClassForgetting(label=label, n=n, before=1.0, after=after, low=low, high=0.9)
        for label, n, after, low in (
            ("one image", 1, 0.0, -0.1),
            ("forgotten", 40, 0.5, 0.3),
            ("most forgotten", 40, 0.2, 0.6),
            ("improved", 40, 1.0, -0.3),
        )
    )
    found = Forgetting(parent="p", through="own", images=121, before=1, after=0.5, drop=0.5, low=0.4, high=0.6, classes=classes)
    assert [item.label for item in found.most_forgotten()] == ["most forgotten", "forgotten"]


def test_run_summary_reports_excluded_images(child: Run, capsys: pytest.CaptureFixture[str]) -> None:
    show_run(child)
    printed = " ".join(capsys.readouterr().out.split())
    assert "of validation and test were left out, because the backbone was trained on them" in printed
    assert "unseen images" in printed and "groups: none given. Images of one object" in printed
