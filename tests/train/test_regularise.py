"""Drop-path and mixup: where the table wants them, the same in every repetition, and nothing of them in what is exported."""

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
    "backbone": "test_convnext2", "input_size": (32, 32), "val": 0.25, "test": 0.25, "workers": 0, "batch_size": 8, "pretrained": False,
    "epochs": 4, "strategy": "full", "lr": 1e-3,
}  # fmt: skip


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.from_options(**{**SMALL, **changes})


@pytest.mark.parametrize("name", ["test_vit", "test_convnext2"])
def test_the_chances_are_timms_own_and_only_while_it_trains(name: str) -> None:
    model, theirs = timm.create_model(name, num_classes=3), timm.create_model(name, num_classes=3, drop_path_rate=0.2)
    wanted = {place: part.drop_prob for place, part in theirs.named_modules() if isinstance(part, DropPath)}
    keys, kinds = list(model.state_dict()), [type(part) for part in model.modules()]
    with stochastic_depth(model, 0.2):
        found = {place: part.drop_prob for place, part in model.named_modules() if isinstance(part, DropPath)}
        assert found == pytest.approx(wanted) and list(model.state_dict()) == keys
    assert [type(part) for part in model.modules()] == kinds and not any(isinstance(part, DropPath) for part in model.modules())


def test_a_network_that_came_with_drop_path_gets_it_back() -> None:
    model = timm.create_model("test_convnext2", num_classes=3, drop_path_rate=0.3)
    before = {place: model.get_submodule(place) for place in drop_path_layers(model)}
    with stochastic_depth(model, 0.0):
        assert all(isinstance(model.get_submodule(place), nn.Identity) for place in before)
    assert all(model.get_submodule(place) is part for place, part in before.items())


def test_the_table_drops_paths_in_networks_without_batchnorm_and_mixes_above_20000_images() -> None:
    convnext, resnet = timm.create_model("test_convnext2", num_classes=3), timm.create_model("test_efficientnet", num_classes=3)

    def figures(model: nn.Module, images: int, **changes: object) -> tuple[float, float]:
        plan = plan_of(_config(epochs=None, lr=None, pretrained=True, **changes), images, model)
        return plan.drop_path, plan.mixup

    assert [figures(convnext, images) for images in (1_000, 1_001, 20_000, 20_001, 100_001)] == [
        (0.0, 0.0), (0.1, 0.0), (0.1, 0.0), (0.1, 0.1), (0.1, 0.2),
    ]  # fmt: skip
    assert figures(resnet, 5_000) == (0.0, 0.0) and figures(resnet, 5_000, drop_path=0.2, mixup=0.4) == (0.2, 0.4)
    assert figures(convnext, 50_000, drop_path=0.0, mixup=0.0) == (0.0, 0.0), "none is a choice too"


def test_a_network_that_drops_paths_can_still_be_cut_and_its_upper_half_drops_them() -> None:
    model = timm.create_model("test_convnext2", num_classes=3).eval()
    stages = choose_stages(find_stages(model, find_head(model)), "0.5")
    with stochastic_depth(model, 0.2):
        parts = split_frozen(model, stages, torch.randn(2, 3, 64, 64))
    assert parts is not None
    assert [part.drop_prob for part in parts.trainable.modules() if isinstance(part, DropPath)][-1] == pytest.approx(0.2)


def test_drop_path_is_refused_where_there_is_nothing_to_drop() -> None:
    with pytest.raises(ConfigError, match="--drop-path: this network has no drop_path layers"):
        plan_of(_config(drop_path=0.1), 500, torchvision_model("squeezenet1_1", None, 3))


def test_mixed_pictures_are_mostly_their_own_and_the_same_for_the_same_seed() -> None:
    images, labels = torch.rand(16, 3, 4, 4), torch.arange(16)
    shares = []
    for seed in range(50):
        found = []
        for _ in range(2):
            torch.manual_seed(seed)
            found.append(mixup(images, labels, 0.2))
        (mixed, others, share), (again, _, _) = found
        assert torch.equal(mixed, again) and sorted(others.tolist()) == list(range(16))
        assert torch.allclose(mixed, share * images + (1 - share) * images[others], atol=1e-6)
        shares.append(share)
    assert 0.5 <= min(shares) < 0.7 and max(shares) > 0.99 and math.isclose(sum(shares) / 50, 0.9, abs_tol=0.08)


class _StopError(Exception):
    """Ends a training from its progress."""


@pytest.mark.parametrize("choice", [{"drop_path": 0.3}, {"mixup": 0.4, "strategy": "partial", "unfreeze": "0.5"}])
def test_a_resumed_training_ends_with_the_same_weights_and_an_ordinary_network(
    colours: Path, tmp_path: Path, choice: dict[str, object]
) -> None:
    config = _config(checkpoint_s=0.001, **choice)
    stages: set[str] = set()

    def stop(stage: str, done: int, total: int) -> None:
        stages.add(stage)
        if stage == "fine-tuning" and done == 7:
            raise _StopError

    whole = train(colours, config, tmp_path / "whole")
    with pytest.raises(_StopError):
        train(colours, config, tmp_path / "broken", progress=stop)
    assert "running the frozen layers" not in stages, "mixed pictures cannot be cached"
    resumed = train(colours, config, tmp_path / "broken", resume=True)
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]
    plain = train(colours, config.with_options(drop_path=None, mixup=None), tmp_path / "plain")
    assert plain.record.files["weights.safetensors"] != whole.record.files["weights.safetensors"]
    model = whole.load_model().train()  # even then: nothing is left to chance
    assert not any(isinstance(part, DropPath) for part in model.modules())
    assert whole.record.backbone.model_args == {}
