"""Activation cache: partition of networks, training on cached activations, size limit, and resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from edgetl.data.folder import scan
from edgetl.data.split import split
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.inputs.activation_cache import CacheOptions, cache_activations
from edgetl.train.inputs.augmentation import make_augmentation
from edgetl.train.inputs.dataset import TrainingImages
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.backbone import Backbone, find_head, torchvision_model
from edgetl.train.networks.partition import split_frozen
from edgetl.train.networks.stages import choose_stages, find_stages
from edgetl.train.workflows.optimization import Training, batch_options, optimize
from edgetl.train.workflows.train import train
from tests.train.planning import plan_of

NETWORKS = ("test_resnet", "test_efficientnet", "mobilenetv2_035", "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "test_convnext2")


@pytest.mark.parametrize("name", [*NETWORKS, "torchvision:squeezenet1_1"])
@pytest.mark.parametrize("unfreeze", ["0.33", "0.5"])
def test_frozen_and_trainable_part_together_equal_the_network(name: str, unfreeze: str) -> None:
    torch.manual_seed(0)
    architecture = name.removeprefix("torchvision:")
    model = torchvision_model(architecture, None, 5) if architecture != name else timm.create_model(name, num_classes=5)
    stages = find_stages(model.eval(), find_head(model))
    trained = choose_stages(stages, unfreeze)
    images = torch.randn(3, 3, 64, 64)
    parts = split_frozen(model, trained, images[:2])
    assert parts is not None
    with torch.inference_mode():
        assert torch.allclose(parts.trainable(parts.frozen(images)), model(images), atol=1e-4)
    expected = {parameter for stage in trained for parameter in stage.parameters}
    assert {parameter for parameter, _ in parts.trainable.named_parameters()} == expected


@pytest.mark.parametrize("name", ["test_vit", "test_vit4"])
def test_partition_splits_a_vision_transformer_between_blocks(name: str) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    images = torch.randn(3, 3, *model.pretrained_cfg["input_size"][1:])
    parts = split_frozen(model, choose_stages(find_stages(model, find_head(model)), "0.5"), images[:2])
    assert parts is not None
    with torch.inference_mode():
        assert torch.allclose(parts.trainable(parts.frozen(images)), model(images), atol=1e-4)
        assert parts.frozen(images).shape[2] == model.num_features, "tokens"


def test_partition_is_none_for_a_network_that_is_not_a_chain() -> None:
    model = timm.create_model("xcit_nano_12_p16_224", num_classes=5).eval()
    stages = find_stages(model, find_head(model))
    assert split_frozen(model, choose_stages(stages, "0.33"), torch.randn(2, 3, *model.pretrained_cfg["input_size"][1:])) is None


def _backbone(config: TrainConfig) -> Backbone:
    torch.manual_seed(0)
    return load_backbone(config.with_options(pretrained=False).backbone, 3)


def _config(**changes: object) -> TrainConfig:
    common = {"backbone": "test_resnet", "input_size": (32, 32), "strategy": "partial", "unfreeze": "0.5", "batch_size": 8, "workers": 0}
    return TrainConfig.from_options(**{**common, "epochs": 4, "augment": "none", "lr": 1e-2, **changes})


def test_training_on_cached_activations_gives_the_losses_of_the_whole_network(colors: Path, tmp_path: Path) -> None:
    splits = split(scan(colors), val=0.25, test=0.25)
    (work := tmp_path / "work").mkdir()
    found = []
    for views in (0, 4):
        config = _config(cache_views=views)
        backbone = _backbone(config)
        before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
        state = optimize(Training(backbone, splits, config, plan_of(config, len(splits.train), backbone.model), Execution("cpu", work)))
        after = backbone.model.state_dict()
        assert torch.equal(before["layer1.0.conv1.weight"], after["layer1.0.conv1.weight"])
        assert torch.equal(before["layer1.0.bn1.running_mean"], after["layer1.0.bn1.running_mean"])
        assert not torch.equal(before["layer4.0.conv1.weight"], after["layer4.0.conv1.weight"])
        found.append([row["val_loss"] for row in state.rows])
    assert found[0] == pytest.approx(found[1], rel=0.02, abs=0.01), "within the rounding of float16"
    assert list(work.iterdir()) == [], "the cache is removed"


def test_activation_cache_stays_within_its_limits(colors: Path, tmp_path: Path) -> None:
    splits = split(scan(colors), val=0.25, test=0.25)

    (work := tmp_path / "work").mkdir()

    def views(**changes: object) -> int:
        config = _config(augment="light", **changes)
        backbone = _backbone(config)
        plan = plan_of(config.with_options(strategy="partial", unfreeze="0.5"), len(splits.train), backbone.model)
        training = Training(backbone, splits, config, plan, Execution("cpu", work))
        augment = make_augmentation(config.data.augment, backbone.spec, flip=False)
        cache, images = (
            CacheOptions(training.trained, config.run.cache_views, config.run.cache_gb, work),
            TrainingImages(splits.train, splits.val),
        )
        found = cache_activations(backbone, images, augment, batch_options(training), steps=range(100), cache=cache)
        return len(np.load(work / "train.npy", mmap_mode="r")) // len(splits.train) if found else 0

    assert views(cache_views=5) == 5
    size = sum(path.stat().st_size for path in work.iterdir())
    half = views(cache_views=5, cache_gb=size / 2 / 1e9)
    assert 1 <= half < 5
    assert sum(path.stat().st_size for path in work.iterdir()) <= size / 2 + 1000
    assert views(cache_views=5, cache_gb=1e-9) == 0


def test_resumed_partial_training_uses_the_same_cached_views(colors: Path, tmp_path: Path) -> None:
    config = _config(augment="light", pretrained=False, epochs=12, cache_views=8, checkpoint_s=0.001, augmented_views=1)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done == total - 5:
            raise KeyboardInterrupt

    whole = train(colors, config, tmp_path / "whole")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(colors, config, tmp_path / "broken", progress=stop)
    resumed = train(colors, config, tmp_path / "broken", resume=True)
    assert resumed.record.files["weights.safetensors"] == whole.record.files["weights.safetensors"]
