from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.core.progress import silent
from edgetl.data.folder import scan
from edgetl.data.split import split
from edgetl.errors import TrainingError
from edgetl.train.backbones import Backbone, find_head
from edgetl.train.config import TrainConfig
from edgetl.train.full import parameter_groups, tune_all, warm_cosine
from edgetl.train.sources import load_backbone

SMALL = {"backbone": "test_resnet", "input_size": (32, 32), "val": 0.25, "test": 0.25, "workers": 0, "epochs": 2, "batch_size": 8}


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({**SMALL, **changes})


def _random_backbone(config: TrainConfig) -> Backbone:
    torch.manual_seed(0)
    return load_backbone(config.model_copy(update={"pretrained": False}), 3)


def test_learning_rates_fall_from_the_head_to_the_stem_by_the_ratio() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    groups = parameter_groups(model, find_head(model), lr=1e-3, ratio=0.1, weight_decay=0.05)
    rates = {group["stage"]: group["lr"] for group in groups}
    assert rates["head"] == pytest.approx(1e-3)
    assert min(rates.values()) == pytest.approx(1e-4) and rates["conv1.0"] == min(rates.values())
    assert sorted(rates.values()) == [rates[stage] for stage in dict.fromkeys(g["stage"] for g in groups)]


def test_every_trainable_parameter_is_in_exactly_one_group_and_vectors_do_not_decay() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    groups = parameter_groups(model, find_head(model), lr=1e-3, ratio=0.1, weight_decay=0.05)
    listed = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in model.parameters() if p.requires_grad} and len(listed) == len({id(p) for p in listed})
    assert all((group["weight_decay"] == 0) == all(p.ndim < 2 for p in group["params"]) for group in groups)


def test_schedule_warms_up_then_falls_to_zero() -> None:
    factors = [warm_cosine(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(1.0)
    assert factors[100] == pytest.approx(0.0) and factors[10:] == sorted(factors[10:], reverse=True)


def test_few_images_leave_batchnorm_and_its_statistics_untouched(colours: Path) -> None:
    config = _config(pretrained=True)
    backbone = _random_backbone(config)
    norms = {name: m for name, m in backbone.model.named_modules() if isinstance(m, _BatchNorm)}
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in norms.items()}
    weight = backbone.model.get_submodule("conv1").state_dict()
    weight = {key: value.clone() for key, value in weight.items()}
    tune_all(backbone, split(scan(colours)), config, device="cpu", progress=silent)
    assert all(torch.equal(before[name][key], value) for name, m in norms.items() for key, value in m.state_dict().items())
    after = backbone.model.get_submodule("conv1").state_dict()
    assert any(not torch.equal(weight[key], after[key]) for key in weight)


def test_random_weights_train_batchnorm(colours: Path) -> None:
    config = _config(pretrained=False)
    backbone = _random_backbone(config)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items() if "running_mean" in key}
    tune_all(backbone, split(scan(colours)), config, device="cpu", progress=silent)
    after = backbone.model.state_dict()
    assert all(not torch.equal(value, after[key]) for key, value in before.items())


def test_worker_processes_do_not_change_the_result(colours: Path) -> None:
    states = []
    for workers in (0, 2):
        config = _config(pretrained=False, workers=workers, epochs=1)
        backbone = _random_backbone(config)
        tune_all(backbone, split(scan(colours)), config, device="cpu", progress=silent)
        states.append(backbone.model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_divergence_stops_with_a_sentence_that_names_the_learning_rate(colours: Path) -> None:
    config = _config(pretrained=False, lr=1e30, epochs=3)
    with pytest.raises(TrainingError, match=r"diverged.*Lower --lr \(now 1e\+30\)"):
        tune_all(_random_backbone(config), split(scan(colours)), config, device="cpu", progress=silent)
