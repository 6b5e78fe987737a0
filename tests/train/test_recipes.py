"""Training recipes: they replace data-dependent defaults, options override them, and the fastai recipe has fastai's rates."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetl.errors import ConfigError
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.config.recipe import builtin_recipes, read_recipe
from edgetl.train.loop.optimizer import make_schedule, one_cycle, parameter_groups, rate_factor, trainable_stages
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.stages import choose_stages, find_stages
from edgetl.train.workflows.estimate import estimate
from edgetl.train.workflows.train import train
from tests.command import edgetl
from tests.train.planning import plan_of

SMALL = {"backbone": "test_resnet", "input_size": (32, 32), "val": 0.25, "test": 0.25, "workers": 0, "batch_size": 8}


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.from_options(**{**SMALL, **changes})


def _backbone() -> Backbone:
    torch.manual_seed(0)
    return load_backbone(_config(pretrained=False).backbone, 3)


def _plan(images: int = 80, **changes: object) -> Plan:
    return plan_of(_config(**changes), images, _backbone().model)


def _recipe(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_recipe_replaces_data_dependent_defaults_and_keeps_the_others(tmp_path: Path) -> None:
    file = _recipe(tmp_path / "mine.toml", 'strategy = "partial"\nsteps = 77\nlr = 2e-3\nweight_decay = 0.0\naugment = "none"\n')
    plan, table = _plan(recipe=file), _plan(strategy="partial")
    assert (plan.strategy, plan.steps, plan.lr, plan.weight_decay, plan.augment) == ("partial", 77, 2e-3, 0.0, "none")
    assert (plan.unfreeze, plan.lr_decay, plan.label_smoothing) == (table.unfreeze, table.lr_decay, table.label_smoothing)
    assert plan.ema_decay == pytest.approx(1 - 10 / 77), "the EMA window of a short training is short"


def test_options_override_the_recipe(tmp_path: Path) -> None:
    file = _recipe(tmp_path / "mine.toml", 'strategy = "full"\nunfreeze = "1"\nepochs = 9\nlr = 2e-3\nlr_spread = 10.0\naugment = "none"\n')
    plan = _plan(recipe=file, strategy="partial", epochs=2, lr=5e-3, backbone_lr=1e-4, lr_decay=0.5, augment="medium")
    assert (plan.strategy, plan.steps, plan.lr, plan.backbone_lr, plan.lr_decay) == ("partial", 20, 5e-3, 1e-4, 0.5)
    assert plan.augment == "medium"
    assert plan.unfreeze == "0.33", "the stages of a recipe apply only with its strategy"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head_rate = 1", r"head_rate is not known \(known: strategy, unfreeze, .*lr"),
        ('epochs = "3"\nlr_decay = 2.0', "epochs: .*; lr_decay: "),
        ("epochs = 3\nsteps = 4", "epochs and steps exclude each other"),
        ("lr_spread = 10.0\nbackbone_lr = 1e-3", "Remove backbone_lr and lr_decay"),
        ("epochs 3", "is not TOML"),
    ],
)
def test_recipe_error_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)--recipe .*mine.toml.*{message}"):
        _plan(recipe=_recipe(tmp_path / "mine.toml", text))


def test_unknown_recipe_error_lists_the_built_in_recipes() -> None:
    with pytest.raises(ConfigError, match=r"--recipe slowai: there is no such recipe. Built-in recipes: fastai. Or give a file"):
        _plan(recipe="slowai")
    with pytest.raises(ConfigError, match=r"--recipe /nowhere/x\.toml cannot be read"):
        _plan(recipe="/nowhere/x.toml")
    assert [read_recipe(name).schema_version for name in builtin_recipes()] == [1]


def test_one_cycle_schedule_has_the_expected_start_peak_and_end() -> None:
    factors = [one_cycle(step, 100, rise=0.3, div=5.0) for step in range(101)]
    assert factors[0] == pytest.approx(0.2) and factors[30] == pytest.approx(1.0) and factors[100] == pytest.approx(1e-5)
    assert factors[15] == pytest.approx(0.6) and factors[65] == pytest.approx(0.5, abs=1e-4)
    assert factors[:31] == sorted(factors[:31]) and factors[30:] == sorted(factors[30:], reverse=True)


def _groups(plan: Plan) -> list[dict[str, Any]]:
    backbone = _backbone()
    return parameter_groups(backbone.model, choose_stages(find_stages(backbone.model, backbone.head_name), plan.unfreeze), plan)


def test_fastai_recipe_trains_a_random_head_for_one_epoch_then_all_layers() -> None:
    plan = _plan(recipe="fastai", epochs=3)
    assert (plan.strategy, plan.unfreeze, plan.frozen_steps, plan.steps, plan.ema_decay) == ("full", "1", 10, 40, 0.0)
    assert not plan.fit_head and not plan.freeze_batchnorm
    backbone = _backbone()
    trained = choose_stages(find_stages(backbone.model, backbone.head_name), plan.unfreeze)
    assert [stage.name for stage in trainable_stages(trained, plan, 9)] == ["head"]
    assert [stage.name for stage in trainable_stages(trained, plan, 10)] == ["stem", "stage1", "stage2", "stage3", "stage4", "head"]


def test_fastai_recipe_gives_the_learning_rates_of_fine_tune_at_every_step() -> None:
    plan = _plan(recipe="fastai", epochs=3)
    groups = _groups(plan)
    highest = {group["stage"]: group["lr"] for group in groups}
    assert list(highest.values()) == pytest.approx([1e-3 / 100 ** (1 - index / 5) for index in range(6)]), "slice(1e-5, 1e-3)"
    optimizer = torch.optim.AdamW(groups)
    schedule = make_schedule(optimizer, plan, first=0)
    for step in range(plan.steps):
        rates = {group["stage"]: group["lr"] for group in optimizer.param_groups}
        if step < 10:  # fit_one_cycle(1, slice(2e-3), pct_start=0.99)
            expected = 2e-3 / 25 + (2e-3 - 2e-3 / 25) * (1 - math.cos(math.pi * step / 10 / 0.99)) / 2
            assert rates["head"] == pytest.approx(expected) and {rates[name] for name in rates if name != "head"} == {0.0}
        elif step < 10 + 9:  # fit_one_cycle(3, slice(1e-5, 1e-3), pct_start=0.3, div=5)
            done = (step - 10) / 30 / 0.3
            for name, rate in rates.items():
                assert rate == pytest.approx(highest[name] / 5 + highest[name] * 0.8 * (1 - math.cos(math.pi * done)) / 2)
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5 * 1e-5)


def test_resumed_schedule_continues_at_its_step() -> None:
    plan = _plan(recipe="fastai", epochs=3)
    groups = _groups(plan)
    expected = [group["lr"] * rate_factor(plan, group["stage"], 17) for group in groups]
    optimizer = torch.optim.AdamW(groups)
    make_schedule(optimizer, plan, first=17)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx(expected)


class _StopError(Exception):
    """Error that stops a training from its progress callback."""


@pytest.mark.parametrize("at", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_resumed_fastai_training_gives_the_same_weights(colors: Path, tmp_path: Path, at: int) -> None:
    config = _config(backbone="edgetl_small", recipe="fastai", epochs=2, checkpoint_s=0.001)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == at:
            raise _StopError

    whole = train(colors, config, tmp_path / "whole")
    assert whole.record.plan.frozen_steps == 3 and whole.record.head_penalty is None
    first = json.loads((whole.path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["train_loss"] < 3 * math.log(3), "the random head starts with small weights"
    with pytest.raises(_StopError):
        train(colors, config, tmp_path / "broken", progress=stop)
    resumed = train(colors, config, tmp_path / "broken", resume=True)
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]


def test_estimate_marks_the_strategy_of_the_recipe(colors: Path) -> None:
    found = estimate(colors, _config(recipe="fastai", pretrained=True, backbone="edgetl_small"))
    assert [item.plan.strategy for item in found.strategies if item.chosen] == ["full"]


def test_train_command_rejects_an_unknown_recipe(colors: Path, tmp_path: Path) -> None:
    done = edgetl("train", colors, "--out", tmp_path / "run", "--recipe", "slowai")
    assert done.returncode == 3 and "Built-in recipes: fastai" in " ".join(done.stderr.split())


def test_trained_batchnorm_rejects_batches_of_one_image() -> None:
    with pytest.raises(ConfigError, match="each batch needs at least 2 images"):
        _plan(recipe="fastai", batch_size=1)
    assert _plan(strategy="full", batch_size=1).freeze_batchnorm


def test_epochs_option_accepts_auto(colors: Path, tmp_path: Path) -> None:
    assert TrainConfig.from_options(epochs="auto") == TrainConfig()
    done = edgetl("train", colors, "--out", tmp_path / "run", "--epochs", "soon")
    assert done.returncode == 3 and "--epochs" in done.stderr and "auto" in edgetl("train", "--help").stdout
