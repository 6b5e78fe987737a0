from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from edgetl.errors import BackboneError
from edgetl.train.slicing import slice_channels


def _wide() -> Any:
    """A MobileNetV2 whose norms have scales of their own, as a trained one has."""
    torch.manual_seed(0)
    model: Any = timm.create_model("mobilenetv2_100", num_classes=0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.1, 2.0)
            module.get_buffer("running_mean").normal_()
    return model


def test_the_channels_that_vary_most_are_kept() -> None:
    wide: Any = _wide()
    narrow: Any = timm.create_model("mobilenetv2_050", num_classes=0)
    slice_channels(wide, narrow)
    kept = wide.bn1.weight.topk(16).indices.sort().values
    assert torch.equal(narrow.bn1.weight, wide.bn1.weight[kept])
    assert torch.equal(narrow.conv_stem.weight, wide.conv_stem.weight[kept])
    assert torch.equal(narrow.bn2.running_mean, wide.bn2.running_mean), "the head convolution keeps all of its channels"
    joined = (wide.blocks[2][0].bn3.weight ** 2 + wide.blocks[2][1].bn3.weight ** 2 + wide.blocks[2][2].bn3.weight ** 2).topk(16)
    for block in range(3):
        assert torch.equal(narrow.blocks[2][block].bn3.weight, wide.blocks[2][block].bn3.weight[joined.indices.sort().values])
    assert torch.isfinite(narrow.eval()(torch.rand(2, 3, 64, 64))).all()


def test_a_slice_of_the_same_width_is_the_same_network() -> None:
    wide, same = _wide().eval(), timm.create_model("mobilenetv2_100", num_classes=0)
    slice_channels(wide, same)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(same.eval()(images), wide(images))


def test_another_family_is_refused() -> None:
    with pytest.raises(BackboneError, match="ResNet cannot be started from channels of EfficientNet"):
        slice_channels(_wide(), timm.create_model("test_resnet", num_classes=0))
