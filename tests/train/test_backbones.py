"""Backbones: loading from names, folders and weights files, preprocessing options, and feature extraction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from pydantic import ValidationError

from edgetl.errors import BackboneError, ConfigError
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.inputs.openvino_features import compile_with_openvino, powers_of_two
from edgetl.train.networks.backbone import feature_extractor, find_head


def test_unknown_backbone_error_lists_the_nearest_name() -> None:
    with pytest.raises(BackboneError, match=r"'mobilnetv3_small_100'.*mobilenetv3_small_100"):
        load_backbone(TrainConfig.from_options(backbone="mobilnetv3_small_100").backbone, 3)
    with pytest.raises(BackboneError, match=r"'resnet19'.*resnet18"):
        load_backbone(TrainConfig.from_options(backbone="torchvision:resnet19").backbone, 3)


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"has no config\.json.*model\.safetensors"):
        load_backbone(TrainConfig.from_options(backbone=f"local-dir:{tmp_path}").backbone, 3)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050", "torchvision:resnet18", "torchvision:squeezenet1_0"])
def test_feature_extractor_and_head_equal_the_whole_network(name: str) -> None:
    torch.manual_seed(0)
    backbone = load_backbone(TrainConfig.from_options(backbone=name, pretrained=False).backbone, 7)
    backbone.model.eval()
    images = torch.rand(2, 3, *backbone.spec.input_size)
    with torch.inference_mode():
        features = feature_extractor(backbone.model, backbone.head_name)(images)
        assert torch.allclose(backbone.head(features), backbone.model(images), atol=1e-5)
    assert backbone.head.out_features == 7


def test_weights_file_is_loaded_and_its_hash_recorded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("test_resnet", num_classes=1000)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    backbone = load_backbone(TrainConfig.from_options(backbone="test_resnet", weights=str(path)).backbone, 3)
    assert all(
        torch.equal(backbone.model.state_dict()[key], value) for key, value in source.state_dict().items() if not key.startswith("fc")
    )
    assert backbone.weights_sha256 is not None and len(backbone.weights_sha256) == 64


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(torchvision.models.squeezenet1_0().state_dict(), path)
    with pytest.raises(BackboneError, match=r"other\.safetensors does not fit test_resnet: \d+ tensors"):
        load_backbone(TrainConfig.from_options(backbone="test_resnet", weights=str(path)).backbone, 3)


def test_preprocessing_options_override_the_backbone() -> None:
    config = TrainConfig.from_options(
        backbone="test_resnet", pretrained=False, input_size=(64, 96), mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.3), crop_pct=1.0
    )
    spec = load_backbone(config.backbone, 2).spec
    assert (spec.input_size, spec.mean, spec.std, spec.crop_pct) == ((64, 96), (0.5, 0.5, 0.5), (0.1, 0.2, 0.3), 1.0)
    with pytest.raises(ConfigError, match="--std"):
        load_backbone(config.with_options(std=(0.0, 1.0, 1.0)).backbone, 2)


@pytest.mark.parametrize("crop_pct", [-1.0, 0.0, 0.05, 87.5])
def test_crop_pct_outside_the_range_of_the_preprocessing_is_rejected(crop_pct: float) -> None:
    """A value that the preprocessing cannot apply must fail before training."""
    with pytest.raises(ValidationError, match="crop_pct"):
        TrainConfig.from_options(backbone="test_resnet", crop_pct=crop_pct)


def test_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(BackboneError, match="no linear layer"):
        find_head(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten()))


def test_openvino_features_equal_torch_features_for_any_number_of_images() -> None:
    torch.manual_seed(0)
    backbone = load_backbone(TrainConfig.from_options(backbone="test_resnet", pretrained=False).backbone, 3)
    extractor = feature_extractor(backbone.model, backbone.head_name)
    images = np.random.default_rng(0).random((12, 3, 64, 64), dtype=np.float32)
    compiled = compile_with_openvino(extractor, images[:5])
    assert compiled is not None
    with torch.inference_mode():
        expected = extractor(torch.from_numpy(images)).numpy()
    for count in (1, 5, 12):
        np.testing.assert_allclose(compiled(images[:count]), expected[:count], rtol=1e-3, atol=1e-4)
    assert [powers_of_two(number) for number in (0, 1, 13)] == [[], [1], [8, 4, 1]]


@pytest.mark.shared
def test_published_weights_keep_their_arguments_and_license(shared: Path) -> None:
    backbone = load_backbone(TrainConfig.from_options(backbone=f"local-dir:{shared}/weights/mobilenetv2_100.imagenet").backbone, 6)
    assert (backbone.architecture, backbone.model_args, backbone.license) == ("mobilenetv2_100", {"pad_type": "same"}, "apache-2.0")
    assert backbone.spec.mean == (0.5, 0.5, 0.5) and backbone.spec.input_size == (224, 224)


@pytest.mark.shared
def test_squeezenet_loads_published_torchvision_weights(shared: Path) -> None:
    config = TrainConfig.from_options(backbone="torchvision:squeezenet1_0", weights=f"{shared}/weights/squeezenet1_0.dc_in1k.safetensors")
    backbone = load_backbone(config.backbone, 6)
    assert backbone.head.in_features == 512
