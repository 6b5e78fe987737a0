"""The range test finds a rate on curves that are known, touches nothing, and its rate is that of the training, resumed or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgetl.cli.options import build
from edgetl.core.progress import silent
from edgetl.data.folder import scan
from edgetl.data.split import split
from edgetl.errors import ConfigError
from edgetl.train.artifacts.sources.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.inputs.dataset import TrainingImages, training_batches
from edgetl.train.inputs.samplers import BatchOptions
from edgetl.train.loop.loop import Tuning
from edgetl.train.loop.lr_finder import HIGHEST, LOWEST, STEPS, choose_rate, sweep_rates, with_sweep
from edgetl.train.networks.stages import choose_stages, find_stages
from edgetl.train.workflows.train import train
from tests.train.planning import plan_of

SMALL = {
    "backbone": "test_resnet", "input_size": (32, 32), "val": 0.25, "test": 0.25, "workers": 0, "batch_size": 8, "pretrained": False,
    "strategy": "full", "lr": "auto", "epochs": 4,
}  # fmt: skip
RATES = np.geomspace(LOWEST, HIGHEST, STEPS)


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.from_options(**{**SMALL, **changes})


def _curve(losses: np.ndarray) -> list[tuple[float, float]]:
    return list(zip(RATES.tolist(), losses.tolist(), strict=True))


def test_the_steepest_fall_is_chosen_a_tenth_below_the_lowest_loss() -> None:
    falls = 2.0 - 1.5 / (1 + np.exp(-4 * (np.log10(RATES) + 3.0)))  # steepest at 1e-3
    rises = 40 * np.maximum(0.0, np.log10(RATES) + 1.0) ** 2  # from 1e-1
    found = choose_rate(_curve(falls + rises)).rate
    assert found == pytest.approx(1e-3, rel=0.35)
    late = choose_rate(_curve(2.0 - 1.5 / (1 + np.exp(-12 * (np.log10(RATES) + 1.3))) + rises)).rate
    lowest = RATES[np.argmin(2.0 - 1.5 / (1 + np.exp(-12 * (np.log10(RATES) + 1.3))) + rises)]
    assert late is not None and late <= lowest / 8, "never next to where it blows up"


def test_a_loss_that_does_not_fall_chooses_nothing() -> None:
    noise = 1 + 0.01 * np.random.default_rng(0).normal(size=STEPS)
    assert choose_rate(_curve(noise)).rate is None
    assert choose_rate(_curve(np.linspace(0.1, 3.0, STEPS))).rate is None
    assert choose_rate([(1e-6, 1.0)]).rate is None
    early = np.concatenate([np.linspace(1.3, 1.0, 4), np.linspace(1.0, 1.6, STEPS - 4)])
    assert choose_rate(_curve(early)).rate is None, "a fall at the lowest rates is the luck of the batches"
    plan = plan_of(_config(), 80, load_backbone(_config().backbone, 3).model)
    assert with_sweep(plan, _curve(noise), _config()) == plan


def test_the_sweep_leaves_weights_and_generators_alone_and_repeats_itself(colours: Path) -> None:
    config = _config()
    splits = split(scan(colours), val=0.25, test=0.25)
    torch.manual_seed(0)
    backbone = load_backbone(config.backbone, 3)
    plan = plan_of(config, len(splits.train), backbone.model)
    module = Tuning(backbone, choose_stages(find_stages(backbone.model, backbone.head_name), plan.unfreeze), plan, config)
    options = BatchOptions(config.optim.batch_size, config.run.seed, config.data.workers)
    batches = training_batches(TrainingImages(splits.train, splits.val), backbone.spec, None, options, steps=range(plan.steps))
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    generator, modes = torch.get_rng_state(), [part.training for part in backbone.model.modules()]
    one, two = (sweep_rates(module, batches, device="cpu", clip_norm=1.0, progress=silent) for _ in range(2))
    lowest = [loss for rate, loss in one if rate < 4e-6]
    assert max(lowest) - min(lowest) < 0.01 * min(lowest), "at rates that change nothing, hard and easy batches look the same"
    assert one == two and 10 < len(one) <= STEPS and one[0][0] == LOWEST
    assert all(torch.equal(value, before[key]) for key, value in backbone.model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state()) and modes == [part.training for part in backbone.model.modules()]
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


def test_a_loss_that_begins_far_off_is_swept_too(colours: Path) -> None:
    config = _config()
    splits = split(scan(colours), val=0.25, test=0.25)
    backbone = load_backbone(config.backbone, 3)
    with torch.no_grad():
        backbone.head.weight.mul_(1000)
    plan = plan_of(config, len(splits.train), backbone.model)
    module = Tuning(backbone, choose_stages(find_stages(backbone.model, backbone.head_name), plan.unfreeze), plan, config)
    options = BatchOptions(config.optim.batch_size, config.run.seed, config.data.workers)
    batches = training_batches(TrainingImages(splits.train, splits.val), backbone.spec, None, options, steps=range(plan.steps))
    found = sweep_rates(module, batches, device="cpu", clip_norm=1.0, progress=silent)
    assert found[0][1] > 10 and len(found) > 30


class _StopError(Exception):
    """Ends a training from its progress."""


@pytest.mark.slow
def test_auto_trains_as_the_number_it_found_would_and_a_resumed_one_too(colours: Path, tmp_path: Path) -> None:
    swept: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "looking for a learning rate":
            swept.append(done)
        if stage == "fine-tuning" and done == 6:
            raise _StopError

    auto = train(colours, _config(checkpoint_s=0.001), tmp_path / "auto")
    found = auto.record.plan.lr_found
    assert found is not None and auto.record.plan.lr == found and (auto.path / "lr.png").stat().st_size > 5000
    assert auto.record.config.optim.lr == "auto" and "lr.png" in auto.record.files
    given = train(colours, _config(lr=found), tmp_path / "given")
    assert given.record.files["weights.safetensors"] == auto.record.files["weights.safetensors"]
    assert not (given.path / "lr.png").exists() and given.record.plan.lr_found is None
    with pytest.raises(_StopError):
        train(colours, _config(checkpoint_s=0.001), tmp_path / "broken", progress=stop)
    assert swept
    swept.clear()
    resumed = train(
        colours,
        _config(checkpoint_s=0.001),
        tmp_path / "broken",
        resume=True,
        progress=lambda *told: swept.append(0) if told[0][:7] == "looking" else None,
    )
    assert not swept and resumed.record.plan == auto.record.plan and (resumed.path / "lr.png").exists()
    assert resumed.record.files["weights.safetensors"] == auto.record.files["weights.safetensors"]


def test_auto_moves_every_group_and_a_trunk_rate_that_was_given_stays() -> None:
    falls = _curve(2.0 - 1.5 / (1 + np.exp(-4 * (np.log10(RATES) + 3.0))))
    for changes, moved in (({"recipe": "fastai"}, True), ({"backbone_lr": 7e-4}, False)):
        config = _config(pretrained=True, **changes)
        plan = plan_of(config, 500, load_backbone(_config().backbone, 3).model)
        after = with_sweep(plan, falls, config)
        assert after.lr != plan.lr and after.frozen_lr / after.lr == pytest.approx(plan.frozen_lr / plan.lr)
        ratio = after.backbone_lr / after.lr
        assert ratio == pytest.approx(plan.backbone_lr / plan.lr) if moved else after.backbone_lr == 7e-4


def test_the_command_line_takes_a_number_or_auto() -> None:
    assert (
        build(TrainConfig, lr="auto").optim.lr == "auto"
        and build(TrainConfig, lr="3e-3").optim.lr == 3e-3
        and build(TrainConfig, lr=None).optim.lr is None
    )
    for wrong in ("fast", "-1"):
        with pytest.raises(ConfigError, match="--lr"):
            build(TrainConfig, lr=wrong)
