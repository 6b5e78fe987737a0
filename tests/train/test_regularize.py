"""Stochastic depth (drop path) and mixup: defaults, reproducibility, and a plain network after the training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from edgetl.errors import ConfigError
from edgetl.train.config.options import TrainConfig
from edgetl.train.inputs.augmentation import mixup
from edgetl.train.networks.backbone import find_head, torchvision_model
from edgetl.train.networks.partition import split_frozen
from edgetl.train.networks.stages import choose_stages, find_stages
from edgetl.train.networks.stochastic_depth import drop_path_layers, stochastic_depth
from edgetl.train.workflows.train import train
from tests.train.planning import plan_of

SMALL = {
    "backbone": "test_convnext2",
    "input_size": (32, 32),
    "val": 0.25,
    "test": 0.25,
    "workers": 0,
    "batch_size": 8,
    "pretrained": False,
    "epochs": 4,
    "strategy": "full",
    "lr": 1e-3,
}


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.from_options(**{**SMALL, **changes})


@pytest.mark.parametrize("name", ["test_vit", "test_convnext2"])
def test_stochastic_depth_uses_timm_rates_only_inside_its_context(name: str) -> None:
    model, theirs = timm.create_model(name, num_classes=3), timm.create_model(name, num_classes=3, drop_path_rate=0.2)
    expected = {place: part.drop_prob for place, part in theirs.named_modules() if isinstance(part, DropPath)}
    keys, kinds = list(model.state_dict()), [type(part) for part in model.modules()]
    with stochastic_depth(model, 0.2):
        found = {place: part.drop_prob for place, part in model.named_modules() if isinstance(part, DropPath)}
        assert found == pytest.approx(expected) and list(model.state_dict()) == keys
    assert [type(part) for part in model.modules()] == kinds and not any(isinstance(part, DropPath) for part in model.modules())


def test_stochastic_depth_restores_existing_drop_path_layers() -> None:
    model = timm.create_model("test_convnext2", num_classes=3, drop_path_rate=0.3)
    before = {place: model.get_submodule(place) for place in drop_path_layers(model)}
    with stochastic_depth(model, 0.0):
        assert all(isinstance(model.get_submodule(place), nn.Identity) for place in before)
    assert all(model.get_submodule(place) is part for place, part in before.items())


def test_defaults_enable_drop_path_without_batchnorm_and_mixup_above_20000_images() -> None:
    convnext, resnet = timm.create_model("test_convnext2", num_classes=3), timm.create_model("test_efficientnet", num_classes=3)

    def rates(model: nn.Module, images: int, **changes: object) -> tuple[float, float]:
        plan = plan_of(_config(epochs=None, lr=None, pretrained=True, **changes), images, model)
        return plan.drop_path, plan.mixup

    assert [rates(convnext, images) for images in (1_000, 1_001, 20_000, 20_001, 100_001)] == [
        (0.0, 0.0),
        (0.1, 0.0),
        (0.1, 0.0),
        (0.1, 0.1),
        (0.1, 0.2),
    ]
    assert rates(resnet, 5_000) == (0.0, 0.0) and rates(resnet, 5_000, drop_path=0.2, mixup=0.4) == (0.2, 0.4)
    assert rates(convnext, 50_000, drop_path=0.0, mixup=0.0) == (0.0, 0.0), "0 overrides the default"


def test_network_with_stochastic_depth_can_be_partitioned() -> None:
    model = timm.create_model("test_convnext2", num_classes=3).eval()
    stages = choose_stages(find_stages(model, find_head(model)), "0.5")
    with stochastic_depth(model, 0.2):
        parts = split_frozen(model, stages, torch.randn(2, 3, 64, 64))
    assert parts is not None
    assert [part.drop_prob for part in parts.trainable.modules() if isinstance(part, DropPath)][-1] == pytest.approx(0.2)


def test_drop_path_rejects_a_network_without_residual_branches() -> None:
    with pytest.raises(ConfigError, match="--drop-path: this network has no drop_path layers"):
        plan_of(_config(drop_path=0.1), 500, torchvision_model("squeezenet1_1", None, 3))


def test_mixup_keeps_at_least_half_of_each_image_and_is_reproducible() -> None:
    images, labels = torch.rand(16, 3, 4, 4), torch.arange(16)
    weights = []
    for seed in range(50):
        found = []
        for _ in range(2):
            torch.manual_seed(seed)
            found.append(mixup(images, labels, 0.2))
        (mixed, others, weight), (again, _, _) = found
        assert torch.equal(mixed, again) and sorted(others.tolist()) == list(range(16))
        assert torch.allclose(mixed, weight * images + (1 - weight) * images[others], atol=1e-6)
        weights.append(weight)
    assert 0.5 <= min(weights) < 0.7 and max(weights) > 0.99 and math.isclose(sum(weights) / 50, 0.9, abs_tol=0.08)


class _StopError(Exception):
    """Error that stops a training from its progress callback."""


@pytest.mark.parametrize("choice", [{"drop_path": 0.3}, {"mixup": 0.4, "strategy": "partial", "unfreeze": "0.5"}])
def test_resumed_regularized_training_gives_the_same_weights_and_a_plain_network(
    colors: Path, tmp_path: Path, choice: dict[str, object]
) -> None:
    config = _config(checkpoint_s=0.001, **choice)
    stages: set[str] = set()

    def stop(stage: str, done: int, total: int) -> None:
        stages.add(stage)
        if stage == "fine-tuning" and done == 7:
            raise _StopError

    whole = train(colors, config, tmp_path / "whole")
    with pytest.raises(_StopError):
        train(colors, config, tmp_path / "broken", progress=stop)
    assert "running the frozen layers" not in stages, "activations of mixed images cannot be cached"
    resumed = train(colors, config, tmp_path / "broken", resume=True)
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]
    plain = train(colors, config.with_options(drop_path=None, mixup=None), tmp_path / "plain")
    assert plain.record.files["weights.safetensors"] != whole.record.files["weights.safetensors"]
    model = whole.load_model().train()
    assert not any(isinstance(part, DropPath) for part in model.modules())
    assert whole.record.backbone.model_args == {}
