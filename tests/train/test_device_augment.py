"""GPU augmentation. The tests run the same code on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from edgetl.core.preprocess import PreprocessSpec
from edgetl.data.folder import scan
from edgetl.data.split import Splits, split
from edgetl.train.config.options import Augment, TrainConfig
from edgetl.train.inputs.augmentation import make_augmentation
from edgetl.train.inputs.dataset import TrainingImages, training_batches, validation_batches
from edgetl.train.inputs.gpu_augmentation import divide, gpu_batches
from edgetl.train.inputs.samplers import BatchOptions
from edgetl.train.loop.checkpoints import SavedState
from edgetl.train.loop.loop import LoopSettings, Objective, Session, run_loop
from edgetl.train.loop.losses import ClassLoss, TaskTerm
from edgetl.train.loop.processes import launch
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.stages import choose_stages, find_stages
from tests.train.planning import prepared

SPEC = PreprocessSpec(input_size=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
CPU = torch.device("cpu")
OPTIONS = BatchOptions(batch_size=8, workers=0)


@pytest.fixture
def splits(colors: Path) -> Splits:
    return split(scan(colors))


def _images(splits: Splits) -> TrainingImages:
    return TrainingImages(splits.train, splits.val)


def _config(**changes: Any) -> TrainConfig:
    return TrainConfig.from_options(**{"backbone": "test_resnet", "pretrained": False, "workers": 0, "batch_size": 8, **changes})


@pytest.mark.parametrize("level", ["light", "medium", "strong"])
def test_divide_assigns_each_transform_to_loader_or_device(level: Augment) -> None:
    whole = make_augmentation(level, SPEC, flip=True)
    assert isinstance(whole, v2.Compose)
    geometric, color = divide(whole)
    assert isinstance(geometric, v2.Compose) and isinstance(color, v2.Compose)
    assert [type(step) for step in (*geometric.transforms, *color.transforms)] == [type(step) for step in whole.transforms]
    assert [type(step).__name__ for step in geometric.transforms] == ["RandomResizedCrop", "RandomHorizontalFlip"]


def test_device_batches_equal_loader_batches_without_color_transforms(splits: Splits) -> None:
    crop = v2.Compose([v2.RandomResizedCrop((32, 32), scale=(0.6, 1.0))])
    device_batches = list(gpu_batches(_images(splits), SPEC, crop, OPTIONS, steps=range(3), device=CPU))
    loader_batches = list(training_batches(_images(splits), SPEC, crop, OPTIONS, steps=range(3)))
    for (images, labels), (expected, expected_labels) in zip(device_batches, loader_batches, strict=True):
        assert torch.equal(labels, expected_labels) and images.dtype == torch.float32
        assert torch.allclose(images, expected, atol=2e-6)


def test_color_transforms_differ_by_image_and_are_the_same_after_resume(splits: Splits) -> None:
    augment = make_augmentation("light", SPEC, flip=False)
    assert augment is not None
    whole = list(gpu_batches(_images(splits), SPEC, augment, OPTIONS, steps=range(4), device=CPU))
    resumed = list(gpu_batches(_images(splits), SPEC, augment, OPTIONS, steps=range(2, 4), device=CPU))
    for (images, _), (same, _) in zip(whole[2:], resumed, strict=True):
        assert torch.equal(images, same)
    brightness = whole[0][0].mean(dim=(1, 2, 3))
    plain = next(iter(gpu_batches(_images(splits), SPEC, divide(augment)[0], OPTIONS, steps=range(1), device=CPU)))[0].mean(dim=(1, 2, 3))
    assert (brightness - plain).std() > 1e-3


def _trained(backbone: Backbone, splits: Splits, config: TrainConfig) -> float:
    _, plan = prepared(splits, config)
    augment = make_augmentation("strong", backbone.spec, flip=True)
    assert augment is not None
    batches = gpu_batches(_images(splits), backbone.spec, augment, OPTIONS, steps=range(plan.steps), device=CPU)
    stages = choose_stages(find_stages(backbone.model, backbone.head_name), plan.unfreeze)
    objective = Objective(TaskTerm(ClassLoss(len(splits.folder.labels))))
    val = validation_batches(splits.val or splits.train, backbone.spec, OPTIONS)
    state = run_loop(backbone.model, objective, (batches, val), LoopSettings(stages, plan), Session(launch("cpu")), SavedState())
    return state.rows[-1]["train_loss"]


def test_training_loop_trains_on_device_batches(splits: Splits) -> None:
    config = _config(strategy="full", epochs=3, input_size=(32, 32))
    backbone, plan = prepared(splits, config)
    before = backbone.head.weight.detach().clone()
    assert _trained(backbone, splits, config) < 5.0
    assert plan.steps > 0 and not torch.equal(before, backbone.head.weight)
