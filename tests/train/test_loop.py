"""Training loop: stages, learning rates and batches of each strategy, resume, stop by signals, and divergence."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.core.results import Evaluation, Proportion
from edgetl.data.folder import scan
from edgetl.data.split import split
from edgetl.errors import ConfigError, StoppedError, TrainingError
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan, choose_strategy, steps_per_epoch
from edgetl.train.heads.linear import class_weights, fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.samplers import StepSampler
from edgetl.train.loop.checkpoints import Checkpoints, SavedState
from edgetl.train.loop.losses import ClassLoss, StepOutputs, TaskTerm
from edgetl.train.loop.optimizer import make_schedule, parameter_groups, trainable_stages, warm_cosine
from edgetl.train.loop.processes import Execution
from edgetl.train.loop.resume import Job
from edgetl.train.loop.validation import LoopState
from edgetl.train.networks.backbone import Backbone, find_head
from edgetl.train.networks.stages import choose_stages, find_stages, set_trainable
from edgetl.train.workflows.finetune import LARGER_BACKBONE, find_alarms
from edgetl.train.workflows.optimization import Training, optimize
from edgetl.train.workflows.train import train
from tests.command import Command, edgetl
from tests.train.planning import plan_of, prepared

SMALL = {
    "backbone": "test_resnet",
    "input_size": (32, 32),
    "val": 0.25,
    "test": 0.25,
    "workers": 0,
    "epochs": 2,
    "batch_size": 8,
    "strategy": "full",
    "augment": "light",
}


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.from_options(**{**SMALL, **changes})


def _random_backbone(config: TrainConfig) -> Backbone:
    torch.manual_seed(0)
    return load_backbone(config.with_options(pretrained=False).backbone, 3)


def _tune(colors: Path, config: TrainConfig, backbone: Backbone | None = None, **plan: object) -> tuple[Backbone, LoopState]:
    splits = split(scan(colors))
    network = backbone or _random_backbone(config)
    resolved = plan_of(config, len(splits.train), network.model).model_copy(update=plan)
    with tempfile.TemporaryDirectory() as folder:
        return network, optimize(Training(network, splits, config, resolved, Execution("cpu", Path(folder))))


def _copy(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("images", "strategy"), [(99, "probe"), (100, "partial"), (10_000, "partial"), (10_001, "full"), (100_000, "full"), (100_001, "full")]
)
def test_auto_strategy_depends_on_the_number_of_images(images: int, strategy: str) -> None:
    chosen, reason = choose_strategy(images)
    assert chosen == strategy and f"{images:,}" in reason
    assert ("random weights" in reason) == (images > 100_000)


def test_auto_strategy_counts_distinct_images(colors: Path, tmp_path: Path) -> None:
    run = train(colors, _config(strategy="auto", pretrained=False, augmented_views=1), tmp_path / "run")
    assert run.record.plan.images == len({entry.content for entry in run.splits().entries if entry.part == "train"})
    assert run.record.plan.strategy == "scratch", "random weights need training of all layers"


def test_learning_rates_decrease_to_the_stem_by_lr_decay() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    stages = find_stages(model, find_head(model))
    plan = _plan(backbone_lr=1e-3, lr=5e-3, lr_decay=0.1)
    groups = parameter_groups(model, stages, plan)
    rates = {group["stage"]: group["lr"] for group in groups}
    assert rates["head"] == 5e-3 and rates["stage4"] == pytest.approx(1e-3) and rates["stem"] == pytest.approx(1e-4)
    assert list(rates.values()) == sorted(rates.values())
    assert not any("lr_scale" in group for group in groups)


def test_optimizer_uses_the_planned_learning_rates(colors: Path) -> None:
    config = _config(pretrained=True, epochs=4)
    backbone = _random_backbone(config)
    plan = plan_of(config, 100, backbone.model)
    groups = parameter_groups(backbone.model, choose_stages(find_stages(backbone.model, backbone.head_name), plan.unfreeze), plan)
    planned = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups)
    schedule = make_schedule(optimizer, plan, first=0)
    for step in range(5):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([lr * warm_cosine(step, plan.steps, 0.1) for lr in planned])
        optimizer.step()
        schedule.step()


def _plan(**changes: object) -> Plan:
    model = timm.create_model("test_resnet", num_classes=3)
    return plan_of(_config(), 500, model).model_copy(update=changes)


def test_parameter_groups_cover_each_parameter_once_and_exclude_vectors_from_weight_decay() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    groups = parameter_groups(model, find_stages(model, find_head(model)), _plan())
    listed = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in model.parameters()} and len(listed) == len({id(p) for p in listed})
    assert all((group["weight_decay"] == 0) == all(p.ndim < 2 for p in group["params"]) for group in groups)


def test_cosine_schedule_warms_up_and_decreases_to_zero() -> None:
    factors = [warm_cosine(step, 100, 0.1) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(0.98, abs=0.01)
    assert factors[100] == pytest.approx(0.0) and factors[10:] == sorted(factors[10:], reverse=True)


def test_stages_follow_the_blocks_of_the_network_and_are_chosen_from_the_end() -> None:
    model = timm.create_model("mobilenetv2_050", num_classes=3)
    stages = find_stages(model, find_head(model))
    assert [stage.name for stage in stages] == ["stem", *(f"stage{number}" for number in range(1, 8)), "head"]
    assert all(len({name.split(".")[1] for name in stage.parameters if name.startswith("blocks.")}) <= 1 for stage in stages)
    names = {value: [stage.name for stage in choose_stages(stages, value)] for value in ("0.33", "stage6", "first", "1", "0.99")}
    assert names["0.33"] == ["stage5", "stage6", "stage7", "head"] and names["stage6"] == ["stage6", "stage7", "head"]
    assert names["first"] == ["stem", "stage1", "head"] and "stem" in names["1"] and "stem" not in names["0.99"]
    for wrong in ("stage9", "0", "1.5", "most"):
        with pytest.raises(ConfigError, match=f"--unfreeze {wrong}"):
            choose_stages(stages, wrong)


@pytest.mark.parametrize("unfreeze", ["0.33", "stage4", "first"])
def test_partial_training_keeps_frozen_parameters_and_statistics(colors: Path, unfreeze: str) -> None:
    config = _config(strategy="partial", unfreeze=unfreeze)
    backbone = _random_backbone(config)
    before = _copy(backbone.model)
    _tune(colors, config, backbone, freeze_batchnorm=False)
    stages = find_stages(backbone.model, backbone.head_name)
    trained = choose_stages(stages, unfreeze)
    after = backbone.model.state_dict()
    for stage in stages:
        modules = {name.rpartition(".")[0] for name in stage.parameters}
        same = [torch.equal(before[key], after[key]) for key in after if key.rpartition(".")[0] in modules]
        assert not all(same) if stage in trained else all(same), stage.name


def test_progressive_strategy_unfreezes_stages_from_the_head(colors: Path) -> None:
    config = _config(strategy="progressive", epochs=10)
    backbone = _random_backbone(config)
    plan = plan_of(config, 24, backbone.model)
    trained = choose_stages(find_stages(backbone.model, backbone.head_name), plan.unfreeze)
    trainable = [trainable_stages(trained, plan, step) for step in range(plan.steps)]
    counts = []
    for stages in trainable:
        set_trainable(backbone.model, stages, freeze_batchnorm=False)
        counts.append(sum(parameter.numel() for parameter in backbone.model.parameters() if parameter.requires_grad))
    assert counts == sorted(counts) and len(set(counts)) == len(trained)
    assert [stage.name for stage in trainable[0]] == ["head"] and "stem" not in {stage.name for stage in trainable[-1]}
    before = _copy(backbone.model)
    _tune(colors, config, backbone)
    assert torch.equal(before["conv1.0.weight"], backbone.model.state_dict()["conv1.0.weight"])
    assert not torch.equal(before["layer4.0.conv1.weight"], backbone.model.state_dict()["layer4.0.conv1.weight"])


def test_batchnorm_is_frozen_with_few_images(colors: Path) -> None:
    config = _config(pretrained=True)
    backbone = _random_backbone(config)
    norms = {name: module for name, module in backbone.model.named_modules() if isinstance(module, _BatchNorm)}
    before = {name: _copy(module) for name, module in norms.items()}
    weight = _copy(backbone.model)["layer4.0.conv1.weight"]
    _tune(colors, config, backbone)
    assert all(torch.equal(before[name][key], value) for name, module in norms.items() for key, value in module.state_dict().items())
    assert not torch.equal(weight, backbone.model.state_dict()["layer4.0.conv1.weight"])


def test_random_weights_train_all_layers_and_batchnorm(colors: Path) -> None:
    config = _config(strategy="scratch", pretrained=False)
    backbone = _random_backbone(config)
    before = _copy(backbone.model)
    _tune(colors, config, backbone)
    after = backbone.model.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before if not key.endswith("num_batches_tracked"))


def test_number_of_workers_does_not_change_the_weights(colors: Path) -> None:
    states = [_tune(colors, _config(pretrained=False, workers=workers, epochs=1))[0].model.state_dict() for workers in (0, 1)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_sampler_is_resumable_and_draws_each_image_once_per_epoch() -> None:
    whole = list(StepSampler(21, 8, range(9), seed=3))
    assert list(StepSampler(21, 8, range(4, 9), seed=3)) == whole[4:]
    epoch = [index for batch in whole[:3] for index in batch]
    assert sorted(epoch) == list(range(21)) and sorted(index % 21 for batch in whole[3:6] for index in batch) == list(range(21))
    assert steps_per_epoch(17, 8) == 2, "a last batch of one image is dropped"
    assert steps_per_epoch(1, 8) == 1


def test_l2sp_of_0_changes_nothing_and_strong_l2sp_keeps_weights_near_the_start(colors: Path) -> None:
    plain, zero, strong = (
        _tune(colors, _config(epochs=12, lr=3e-3, backbone_lr=3e-3, **option))[0].model.state_dict()
        for option in ({}, {"l2sp": 0.0}, {"l2sp": 100.0})
    )
    start = _random_backbone(_config()).model.state_dict()
    assert all(torch.equal(plain[key], zero[key]) for key in plain)

    def moved(state: dict[str, torch.Tensor]) -> float:
        return sum(float((state[key] - start[key]).square().sum()) for key in start if key.startswith("layer") and "conv" in key)

    assert 0 < moved(strong) < 0.75 * moved(plain)


def test_mixup_loss_is_the_weighted_loss_of_both_targets() -> None:
    logits, targets, others = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 1, 0, 2, 0, 0])
    term = TaskTerm(ClassLoss(3))
    mixed = float(term(StepOutputs(torch.empty(6), targets, logits, others, 0.7)))
    first, second = (float(torch.nn.functional.cross_entropy(logits, labels)) for labels in (targets, others))
    assert mixed == pytest.approx(0.7 * first + 0.3 * second)


def test_task_loss_excludes_replayed_images_without_a_new_class() -> None:
    logits, targets = torch.randn(4, 3), torch.tensor([0, -1, 2, -2])
    step = StepOutputs(torch.empty(4), targets, logits)
    term = TaskTerm(ClassLoss(3), replay=True)
    assert float(term(step)) == pytest.approx(float(torch.nn.functional.cross_entropy(logits[[0, 2]], targets[[0, 2]])))
    assert term.count_correct(step)[1] == 2


def test_wise_ft_does_not_increase_the_validation_loss(colors: Path) -> None:
    config = _config(epochs=12, lr=3e-3, backbone_lr=3e-3)
    _, tuned = _tune(colors, config)
    mixed_backbone, mixed = _tune(colors, config.with_options(wise_ft=True))
    assert mixed.best_loss <= tuned.best_loss and 0 < mixed.interpolation_weight <= 1
    assert all(torch.equal(mixed.best[key], value) for key, value in mixed_backbone.model.state_dict().items())
    if mixed.interpolation_weight == 1.0:
        assert all(torch.equal(mixed.best[key], tuned.best[key]) for key in tuned.best)


def test_class_weights_balance_the_loss_of_rare_classes() -> None:
    labels = np.array([0] * 90 + [2] * 10)
    weights = class_weights(labels)
    assert weights[1] == 0 and weights[0] * 90 == pytest.approx(weights[2] * 10) and weights[labels].mean() == pytest.approx(1)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 3)).astype(np.float32) + (labels == 2)[:, None] * np.float32(0.8)
    plain, balanced = (fit_logistic(LabeledFeatures(features, labels), 3, seed=0, balanced=choice) for choice in (False, True))
    recall = [float(((features @ head.weight.T + head.bias).argmax(axis=1)[labels == 2] == 2).mean()) for head in (plain, balanced)]
    assert recall[1] > recall[0] + 0.2


def test_divergence_error_names_the_learning_rate(colors: Path) -> None:
    with pytest.raises(TrainingError, match=r"diverged.*Lower --lr \(now 1e\+30\)"):
        _tune(colors, _config(pretrained=False, lr=1e30, epochs=3))


@pytest.mark.parametrize("choice", [{"strategy": "progressive", "epochs": 20}, {"strategy": "partial", "cache_views": 0}])
def test_unfrozen_stages_update_batchnorm_statistics_also_after_resume(colors: Path, tmp_path: Path, choice: dict[str, Any]) -> None:
    config = _config(pretrained=False, checkpoint_s=0.001, patience=100, **choice)
    whole = train(colors, config, tmp_path / "whole")
    assert not whole.record.plan.freeze_batchnorm

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == total - 2:
            raise _StopError

    with pytest.raises(_StopError):
        train(colors, config, tmp_path / "broken", progress=stop)
    resumed = train(colors, config, tmp_path / "broken", resume=True)
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]
    statistics = whole.load_model().get_buffer("layer4.0.bn1.running_mean")
    assert bool(statistics.any()), "the BatchNorm statistics of the last stage are unchanged"


class _StopError(Exception):
    """Raised in the progress callback to stop a training."""


def test_resumed_training_gives_the_same_weights(colors: Path, tmp_path: Path) -> None:
    config = _config(pretrained=False, epochs=12, checkpoint_s=0.001)
    whole = train(colors, config, tmp_path / "whole")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == 13:
            raise _StopError

    with pytest.raises(_StopError):
        train(colors, config, tmp_path / "broken", progress=stop)
    assert not (tmp_path / "broken").exists()
    assert len(list((tmp_path / "broken.checkpoints").iterdir())) == 2
    with pytest.raises(ConfigError, match="--resume"):
        train(colors, config, tmp_path / "broken")
    with pytest.raises(ConfigError, match="has the state of a different training: --epochs 12, now 13"):
        train(colors, _config(pretrained=False, epochs=13), tmp_path / "broken", resume=True)
    resumed = train(colors, config, tmp_path / "broken", resume=True)
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]
    assert not (tmp_path / "broken.checkpoints").exists()


def test_damaged_checkpoint_is_skipped(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "states", Job(data="", options={}, resolved={}))
    for step in (1, 2, 3):
        checkpoints.save(SavedState(step, {"x": torch.full((3,), float(step))}, {"rows": []}))
    files = sorted((tmp_path / "states").iterdir())
    assert [path.name[:13] for path in files] == ["step-00000002", "step-00000003"]
    data = bytearray(files[1].read_bytes())
    data[-1] ^= 1
    files[1].write_bytes(data)
    state = checkpoints.newest()
    assert state is not None and state.step == 2 and state.tensors["x"].tolist() == [2.0] * 3 and state.facts == {"rows": []}
    assert not files[1].exists()
    files[0].write_bytes(files[0].read_bytes()[:20])
    assert checkpoints.newest() is None


def test_sigterm_saves_the_state_and_resume_continues(colors: Path, tmp_path: Path) -> None:
    options = ["--backbone", "test_resnet", "--random-weights", "--input-size", 32, "--strategy", "full", "--epochs", 100]
    arguments = ["train", colors, *options, "--out", tmp_path / "run"]
    command = Command(*arguments)
    while command.is_running() and not list(tmp_path.glob("run.checkpoints/step-*")):
        time.sleep(0.05)  # until it trains: the first of 20 states is saved
    command.signal(signal.SIGTERM)
    stopped = command.wait()
    assert stopped.returncode == StoppedError.exit_code, stopped.stderr
    assert "Resume with: edgetl train --out" in " ".join(stopped.stderr.split())
    done = edgetl(*arguments, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stderr and json.loads(done.stdout)["plan"]["steps"] == 100


@pytest.mark.slow
def test_training_resumes_after_kills_at_random_moments(colors: Path, tmp_path: Path) -> None:
    """Kill the process 20 times, mostly while it saves a state."""
    child = (
        "import sys; from pathlib import Path; from edgetl.train.config.options import TrainConfig; "
        "from edgetl.train.workflows.train import train; "
        "config = TrainConfig.model_validate_json(sys.argv[3]); "
        "train(Path(sys.argv[1]), config, Path(sys.argv[2]), resume=True, "
        "progress=lambda stage, done, total: print(stage, done, flush=True))"
    )
    config = _config(pretrained=False, epochs=60, checkpoint_s=0.0001, patience=1000)
    whole = train(colors, config, tmp_path / "whole")
    kills = 0
    while kills < 20:
        command = [sys.executable, "-c", child, str(colors), str(tmp_path / "broken"), config.model_dump_json()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            steps = random.randint(1, 8)
            for line in process.stdout:
                steps -= line.startswith("fine-tuning")
                if steps == 0:
                    time.sleep(random.uniform(0.0, 0.05))
                    process.kill()
                    break
        kills += 1
        if (tmp_path / "broken").exists():
            break
    resumed = train(colors, config, tmp_path / "broken", resume=True) if not (tmp_path / "broken").exists() else None
    assert kills == 20 and resumed is not None, f"the training ended after {kills} kills"
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]


def test_a_warning_about_low_accuracy_suggests_a_larger_backbone_for_an_embedded_one(colors: Path) -> None:
    splits = split(scan(colors))
    accuracy = Proportion(value=0.5, n=6, low=0.2, high=0.8)
    validation = Evaluation(accuracy=accuracy, macro_f1=0.5, classes=(), confusion=())
    plan = prepared(splits, _config(strategy="scratch", pretrained=False))[1]
    first, *others = find_alarms(1.0, validation, splits, plan, embedded=True)
    assert first.startswith("overfitting") and LARGER_BACKBONE in others
    assert LARGER_BACKBONE not in find_alarms(1.0, validation, splits, plan, embedded=False)


@pytest.mark.slow
def test_random_labels_cause_a_warning_and_correct_labels_do_not(colors: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {"pretrained": False, "epochs": 20, "strategy": "scratch", "patience": 100}
    assert train(colors, _config(**config), tmp_path / "clean").record.alarms == ()
    rng = random.Random(0)
    for image in sorted(path for path in colors.rglob("*") if path.is_file()):
        target = tmp_path / "shuffled" / rng.choice(["a", "b", "c"]) / f"{image.parent.name}-{image.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.read_bytes())
    alarms = train(tmp_path / "shuffled", _config(**config), tmp_path / "run").record.alarms
    assert alarms and ("overfitting" in alarms[0] or "not significantly better" in alarms[0])
