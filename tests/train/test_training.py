"""Strategy comparison, and distillation from a teacher."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from edgetl.core.preprocess import PreprocessSpec, preprocess
from edgetl.core.results import wilson
from edgetl.errors import ConfigError, LicenseError
from edgetl.train.artifacts.record import Compared
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.continual.teacher import TEMPERATURE, Distillation, Teacher
from edgetl.train.loop.losses import StepOutputs
from edgetl.train.workflows.compare import choose
from edgetl.train.workflows.train import train
from tests.command import edgetl
from tests.conftest import write_colors
from tests.train.conftest import small_config

_config = partial(small_config, epochs=2, batch_size=8, augmented_views=1)


def _row(strategy: str, right: int, n: int = 100) -> Compared:
    return Compared(strategy=strategy, steps=10, validation=wilson(right, n), seconds=1.0)


def test_choose_selects_the_cheapest_strategy_within_one_standard_error() -> None:
    # One standard error of 90 of 100 is 3 points.
    assert choose((_row("probe", 87), _row("partial", 88), _row("full", 90)))[0] == 0
    assert choose((_row("probe", 86), _row("partial", 88), _row("full", 90)))[0] == 1
    assert choose((_row("probe", 80), _row("partial", 86), _row("full", 90)))[0] == 2
    # The reason contains the accuracy of better strategies that were not selected.
    reason = choose((_row("probe", 87), _row("partial", 88), _row("full", 90)))[1]
    assert (
        "probe is the cheapest within one standard error (3.0 points) of the best; not selected: partial +1.0 points, full +3.0 points"
        in reason
    )
    best, reason = choose((_row("probe", 90), _row("partial", 89), _row("full", 70)))
    assert "not selected" not in reason
    assert best == 0 and "probe 0.9000, partial 0.8900, full 0.7000" in reason and "100 validation images" in reason


def test_compare_trains_three_strategies_for_the_same_steps_and_selects_one(colors: Path, tmp_path: Path) -> None:
    run = train(colors, _config(strategy="compare"), tmp_path / "run")
    table = run.record.compared
    assert [item.strategy for item in table] == ["probe", "partial", "full"] and table[1].steps == table[2].steps > 0
    assert run.record.name == "run" and run.record.plan.strategy == table[choose(table)[0]].strategy
    assert run.record.validation.accuracy == table[choose(table)[0]].validation
    run.load_model()
    kept = tmp_path / "run.compare"
    assert sorted(path.name for path in kept.iterdir()) == ["full", "partial", "probe"]
    assert [open_run(kept / item.strategy).record.validation.accuracy for item in table] == [item.validation for item in table]
    assert run.record.seconds >= sum(item.seconds for item in table) - 0.3 and run.record.config.optim.strategy == "compare"
    for name in ("notes.txt", "probe/.DS_Store"):  # a user's file, and a file manager's
        (kept / name).touch()
    again = train(colors, _config(strategy="compare", keep="best"), tmp_path / "run", overwrite=True)
    assert [path.name for path in kept.rglob("*") if path.is_file() and path.name != ".DS_Store"] == ["notes.txt"]
    assert again.record.validation == run.record.validation


def test_resumed_comparison_does_not_repeat_finished_strategies(colors: Path, tmp_path: Path) -> None:
    config = _config(strategy="compare", checkpoint_s=0.001)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == 3:
            raise KeyError

    with pytest.raises(KeyError):
        train(colors, config, tmp_path / "run", progress=stop)
    probe = tmp_path / "run.compare" / "probe" / "run.json"
    before = probe.stat().st_mtime_ns
    with pytest.raises(ConfigError, match=r"contains the runs of a stopped comparison.* --resume, or start again with --overwrite"):
        train(colors, config, tmp_path / "run")
    with pytest.raises(ConfigError, match="contains a comparison with other options or images: --seed 0, now 1"):
        train(colors, _config(strategy="compare", seed=1), tmp_path / "run", resume=True)
    assert probe.stat().st_mtime_ns == before
    resumed = train(colors, config, tmp_path / "run", resume=True)
    whole = train(colors, config, tmp_path / "whole")
    assert [item.validation for item in resumed.record.compared] == [item.validation for item in whole.record.compared]
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]


def test_compare_rejects_several_processes(colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="runs in one process"):
        train(colors, _config(strategy="compare"), tmp_path / "run")


def test_train_command_prints_the_compared_strategies(colors: Path, tmp_path: Path) -> None:
    options = [
        "--strategy",
        "compare",
        "--epochs",
        "1",
        "--input-size",
        "32",
        "--augmented-views",
        "1",
        "--backbone",
        "test_resnet",
        "--random-weights",
        "--out",
        str(tmp_path / "run"),
    ]
    done = edgetl("train", str(colors), *options)
    assert done.returncode == 0, done.stderr
    for strategy in ("probe", "partial", "full"):
        assert f"compared: {strategy}" in done.stdout
    output = " ".join(done.stdout.split())
    assert "is the cheapest within one standard error" in output and "the whole comparison took" in output
    assert f"all runs are in {tmp_path / 'run.compare'}" in output


class _RecordingNetwork(nn.Module):
    """Network that records its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.input = torch.empty(0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.input = images
        logits: torch.Tensor = self.layer(images.mean(dim=(2, 3)))
        return logits


def test_teacher_receives_the_students_crops_in_its_own_normalization() -> None:
    torch.manual_seed(0)
    student, teacher = _RecordingNetwork(), _RecordingNetwork()
    student_spec = PreprocessSpec(input_size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    teacher_spec = PreprocessSpec(input_size=(8, 8), mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
    pixels = torch.rand(4, 3, 8, 8)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (teacher_spec.mean, teacher_spec.std))
    teacher.pretrained_cfg = {"fixed_input_size": False}  # type: ignore[assignment]
    term = Distillation(Teacher(teacher, teacher_spec, ()), student_spec, weight=0.25)
    images = (pixels - 0.5) / 0.5
    with torch.no_grad():
        logits = student(images)
        found = term(StepOutputs(images, torch.tensor([0, 1, 0, 1]), logits))
        expected = teacher(teacher.input)
    torch.testing.assert_close(teacher.input, (pixels - mean) / std)
    given, target = (item.log_softmax(dim=1) for item in (logits / TEMPERATURE, expected / TEMPERATURE))
    divergence = float((target.exp() * (target - given)).sum(dim=1).mean()) * TEMPERATURE**2
    assert term.weight == 0.25 and float(found) == pytest.approx(divergence, rel=1e-5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run that classifies three colors."""
    root = tmp_path_factory.mktemp("teacher")
    return train(write_colors(root / "colors", 20), _config(strategy="scratch", epochs=15), root / "teacher")


def test_distilled_student_is_closer_to_its_teacher_and_records_it(teacher: Run, tmp_path: Path) -> None:
    data = Path(teacher.splits().root)
    config = _config(backbone="test_byobnet", strategy="scratch", epochs=10, augment="none")
    plain = train(data, config, tmp_path / "plain")
    distilled = train(data, config.with_options(teacher=str(teacher.path), distillation_weight=1.0), tmp_path / "distilled")
    images = torch.stack([torch.from_numpy(preprocess(sample.path, teacher.record.preprocess)) for sample in teacher.samples("train")])
    with torch.no_grad():
        target = teacher.load_model()(images).log_softmax(dim=1)
        outputs = [item.load_model()(images).log_softmax(dim=1) for item in (plain, distilled)]
    divergences = [float((target.exp() * (target - item)).sum(dim=1).mean()) for item in outputs]
    assert divergences[1] < divergences[0]
    assert distilled.record.plan.label_smoothing == 0.0 < plain.record.plan.label_smoothing, "targets are not softened twice"
    assert not distilled.record.backbone.pretrained
    assert [parent.kind for parent in distilled.record.backbone.parents] == ["teacher"]
    assert distilled.record.backbone.parents[-1].name == teacher.record.name


def test_a_backbone_teaches_through_a_head_fitted_on_the_images_and_a_tutored_training_resumes(colors: Path, tmp_path: Path) -> None:
    config = _config(strategy="scratch", teacher="edgetl_small", epochs=4, checkpoint_s=0.001)
    whole = train(colors, config, tmp_path / "whole")
    assert [(parent.kind, parent.name) for parent in whole.record.backbone.parents] == [("teacher", "edgetl_small")]

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == 5:
            raise KeyError

    with pytest.raises(KeyError):
        train(colors, config, tmp_path / "broken", progress=stop)
    resumed = train(colors, config, tmp_path / "broken", resume=True)
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]


def test_find_teacher_rejects_other_classes_and_forbidden_licenses(colors: Path, teacher: Run, tmp_path: Path) -> None:
    (colors / "red").rename(colors / "pink")
    with pytest.raises(ConfigError, match=r"has other classes \(blue, green, red…\) than the images"):
        train(colors, _config(strategy="partial", teacher=str(teacher.path)), tmp_path / "a")
    with pytest.raises(ConfigError, match="--teacher cannot be combined with --replay"):
        train(colors, _config(strategy="partial", teacher="edgetl_small", replay=str(colors)), tmp_path / "b")
    path = tmp_path / "test_resnet.json"
    path.write_text(json.dumps({"license": "cc-by-nc-4.0"}))
    safetensors.torch.save_model(timm.create_model("test_resnet"), str(tmp_path / "test_resnet.safetensors"))
    config = _config(strategy="partial", teacher="test_resnet", weights_dir=str(tmp_path), license_policy="commercial")
    with pytest.raises(LicenseError, match="test_resnet"):
        train(write_colors(tmp_path / "more", 8), config, tmp_path / "c")
