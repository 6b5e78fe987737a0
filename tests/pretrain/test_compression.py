"""A compressed network computes about what the wide one does, starts training from the same function, and learns its maps."""

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
    """A MobileNetV2 with norms that have scales and statistics of their own, as a trained one has."""
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


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).square().mean() / theirs.var(dim=(0, 2, 3)).mean())


def test_compressed_to_its_own_width_it_computes_the_same() -> None:
    wide, same, images = _wide(), timm.create_model("mobilenetv2_050", num_classes=0), _images(64)
    places = compress(wide, same, images)
    with torch.inference_mode():
        ours, theirs = stage_maps(same, images), stage_maps(wide, images)
    assert all(_apart(a, place.of(b)) < 0.02 for a, b, place in zip(ours[:-1], theirs[:-1], places, strict=True))
    assert _apart(ours[-1], theirs[-1]) < 0.02
    for place in places:
        assert torch.allclose(place.basis.T @ place.basis, torch.eye(place.basis.shape[1]), atol=1e-4)


def test_a_narrower_one_is_near_and_training_begins_from_the_same_function() -> None:
    wide, thin, images = _wide(), timm.create_model("mobilenetv2_035", num_classes=0), _images(96)
    untouched = copy.deepcopy(wide.state_dict())
    places = compress(wide, thin, images)
    assert all(torch.equal(value, untouched[key]) for key, value in wide.state_dict().items())
    with torch.inference_mode():
        theirs = stage_maps(wide, images)
        frozen = stage_maps(thin.eval(), images)
        training = stage_maps(thin.train(), images)
    assert _apart(frozen[0], places[0].of(theirs[0])) < 0.25
    assert _apart(training[-1], frozen[-1]) < 1e-3, "statistics of the batch are those that were set"


def test_other_families_are_refused() -> None:
    with pytest.raises(BackboneError, match="ResNet cannot be made from a compressed EfficientNet"):
        compress(_wide(), timm.create_model("test_resnet", num_classes=0), _images(4))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in timm's form whose network pads as TensorFlow does."""
    root = tmp_path_factory.mktemp("weights")
    (root / "wide").mkdir()
    safetensors.torch.save_file(_wide().state_dict(), root / "wide/model.safetensors")
    cfg = {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 7, "license": "mit"}
    facts = {"architecture": "mobilenetv2_050", "num_classes": 7, "pretrained_cfg": cfg, "model_args": {"pad_type": "same"}}
    (root / "wide/config.json").write_text(json.dumps(facts))
    return root


def test_a_teachers_maps_lie_where_a_students_do_and_pool_to_its_features(teacher: Path) -> None:
    images = _images(6)
    given, torchs = (load_teacher("wide", teacher, pads_as_torch=choice) for choice in (False, True))
    plain: Any = torchs.model
    with torch.inference_mode():
        assert torch.allclose(given.model(images), torchs.model(images), atol=1e-4), "at odd sizes both paddings are the same"
        assert not torch.allclose(given.model(images[..., :-1, :-1]), torchs.model(images[..., :-1, :-1]), atol=1e-2)
        expected = plain.forward_head(plain.forward_features(images), pre_logits=True)
    places = compress(torchs.model, timm.create_model("mobilenetv2_035", num_classes=0), images)
    pooled, maps = TeacherFeatures(torchs, places, SIDE, "cpu")(images)
    assert torch.allclose(pooled, expected, atol=1e-3)
    assert [item.shape[1] for item in maps[:-1]] == [place.basis.shape[1] for place in places]


@pytest.mark.slow
def test_learning_maps_resumes_to_the_same_weights(teacher: Path, tmp_path: Path) -> None:
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
