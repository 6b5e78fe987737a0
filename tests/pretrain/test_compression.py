"""Compression of a wide network into a narrow one: same function, same function in training mode, distillation of feature maps."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from edgetl.errors import BackboneError
from edgetl.pretrain.compression import compress, stage_maps
from edgetl.pretrain.distillation import TeacherFeatures, load_teacher
from edgetl.pretrain.pretrain import Folders, pretrain
from edgetl.pretrain.recipe import Recipe

SIDE = 65


def _wide() -> Any:
    """Return a MobileNetV2 with random scales and statistics in its normalization layers, like those of a trained network."""
    torch.manual_seed(0)
    model: Any = timm.create_model("mobilenetv2_050", num_classes=7)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0.5, 0.5)
    model.train()(_images(64))
    return model.eval()


def _images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")


def _relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).square().mean() / theirs.var(dim=(0, 2, 3)).mean())


def test_compression_to_the_same_width_keeps_the_function() -> None:
    wide, same, images = _wide(), timm.create_model("mobilenetv2_050", num_classes=0), _images(64)
    bases = compress(wide, same, images)
    with torch.inference_mode():
        ours, theirs = stage_maps(same, images), stage_maps(wide, images)
    assert all(_relative_error(a, basis.of(b)) < 0.02 for a, b, basis in zip(ours[:-1], theirs[:-1], bases, strict=True))
    assert _relative_error(ours[-1], theirs[-1]) < 0.02
    for basis in bases:
        assert torch.allclose(basis.basis.T @ basis.basis, torch.eye(basis.basis.shape[1]), atol=1e-4)


def test_compression_to_a_narrower_width_approximates_the_function_in_both_modes() -> None:
    wide, thin, images = _wide(), timm.create_model("mobilenetv2_035", num_classes=0), _images(96)
    untouched = copy.deepcopy(wide.state_dict())
    bases = compress(wide, thin, images)
    assert all(torch.equal(value, untouched[key]) for key, value in wide.state_dict().items())
    with torch.inference_mode():
        theirs = stage_maps(wide, images)
        frozen = stage_maps(thin.eval(), images)
        training = stage_maps(thin.train(), images)
    assert _relative_error(frozen[0], bases[0].of(theirs[0])) < 0.25
    assert _relative_error(training[-1], frozen[-1]) < 1e-3, "the batch statistics equal the stored statistics"


def test_compress_rejects_other_network_families() -> None:
    with pytest.raises(BackboneError, match="EfficientNet cannot be compressed into ResNet"):
        compress(_wide(), timm.create_model("test_resnet", num_classes=0), _images(4))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in timm's format with a network that uses TensorFlow's padding."""
    root = tmp_path_factory.mktemp("weights")
    (root / "wide").mkdir()
    safetensors.torch.save_file(_wide().state_dict(), root / "wide/model.safetensors")
    cfg = {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 7, "license": "mit"}
    facts = {"architecture": "mobilenetv2_050", "num_classes": 7, "pretrained_cfg": cfg, "model_args": {"pad_type": "same"}}
    (root / "wide/config.json").write_text(json.dumps(facts))
    return root


def test_teacher_feature_maps_align_with_the_student_and_pool_to_its_features(teacher: Path) -> None:
    images = _images(6)
    with_own_padding, with_torch_padding = (load_teacher("wide", teacher, pads_as_torch=choice) for choice in (False, True))
    plain: Any = with_torch_padding.model
    with torch.inference_mode():
        assert torch.allclose(with_own_padding.model(images), with_torch_padding.model(images), atol=1e-4), (
            "both paddings are equal at odd sizes"
        )
        assert not torch.allclose(with_own_padding.model(images[..., :-1, :-1]), with_torch_padding.model(images[..., :-1, :-1]), atol=1e-2)
        expected = plain.forward_head(plain.forward_features(images), pre_logits=True)
    bases = compress(with_torch_padding.model, timm.create_model("mobilenetv2_035", num_classes=0), images)
    pooled, maps = TeacherFeatures(with_torch_padding, bases, SIDE, "cpu")(images)
    assert torch.allclose(pooled, expected, atol=1e-3)
    assert [item.shape[1] for item in maps[:-1]] == [basis.basis.shape[1] for basis in bases]


@pytest.mark.slow
def test_resumed_feature_map_distillation_gives_the_same_weights(teacher: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "thin",
            "architecture": "mobilenetv2_035",
            "teacher": "wide",
            "start": "teacher",
            "side": 33,
            "use_side": 32,
            "steps": 8,
            "batch_size": 16,
            "license": "mit",
            "losses": {"maps": 1.0, "logits": 0.1},
            "images": [{"formula": "fractals", "classes": 4, "per_class": 8, "side": 40, "weight": 1}],
        }
    )

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "pretraining" and done == 6:
            raise KeyboardInterrupt

    whole = pretrain(recipe, Folders(out=tmp_path / "whole", weights=teacher))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pretrain(recipe, Folders(out=tmp_path / "broken", weights=teacher), checkpoint_steps=5, progress=stop)
    assert pretrain(recipe, Folders(out=tmp_path / "broken", weights=teacher)).weights_sha256 == whole.weights_sha256
