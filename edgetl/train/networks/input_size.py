"""Input size (``--input-size``, timm's ``img_size``): networks with a fixed input size, such as ViT and Swin, are built for another one."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import nn

from edgetl.errors import BackboneError, ConfigError, first_line
from edgetl.train.networks.backbone import BUILD_ERRORS, TORCHVISION, Backbone, rebuild

# Sizes that are tried for the message, in steps of this many pixels: patches of 16 and windows of 7 and 8 divide some of them.
STEP, FARTHEST = 16, 128


def with_input_size(backbone: Backbone, size: tuple[int, int]) -> Backbone:
    """``backbone`` for images of ``size`` (height, width, px).

    A network that takes images of that size stays as it is. Another one is built again for it, and timm interpolates its position
    embeddings and tables of relative positions. ``model_args`` then hold ``img_size``.

    Raises:
        ConfigError: the network does not take images of that size; the nearest that it takes are named.
    """
    reason = input_size_problem(backbone.model, size)
    if reason is None:
        return backbone
    if not hasattr(backbone.model, "pretrained_cfg"):
        raise _refused(backbone, size, reason, ())
    built = _patch_problem(backbone.model, size) or _built(backbone, size)
    if isinstance(built, str):
        near = (other for other in _near(size) if not _patch_problem(backbone.model, other) and _fits(backbone, other))
        raise _refused(backbone, size, built, tuple(islice(near, 2)))
    return built


def input_size_problem(model: nn.Module, size: tuple[int, int]) -> str | None:
    """Reason why ``model`` does not take images of ``size`` (height, width, px); none if it does."""
    if problem := _patch_problem(model, size):
        return problem
    modes = [module.training for module in model.modules()]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, *size, device=device))
    except BUILD_ERRORS as error:
        return first_line(error).rstrip(".")
    finally:
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
    return None


def _patch_problem(model: nn.Module, size: tuple[int, int]) -> str | None:
    """Refuse sizes that are not multiples of the patch size: a patch embedding silently drops the pixels beyond the last whole patch."""
    for embedding in model.modules():
        if isinstance(embedding, PatchEmbed) and not embedding.dynamic_img_pad:
            height, width = embedding.patch_size
            if size[0] % height or size[1] % width:
                return f"its patches are {height} x {width} pixels, and both sides must be multiples of that"
    return None


def _built(backbone: Backbone, size: tuple[int, int]) -> Backbone | str:
    """Backbone for ``size``, or the reason why there is none."""
    args = {**backbone.model_args, "img_size": list(size)}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"timm\.layers\.interpolate")  # on how torch's next versions will index
            model = _resized(backbone, size, args) or _filtered(backbone, size, args)
    except (BackboneError, *BUILD_ERRORS) as error:
        misfit = str(error).startswith("Error(s) in loading state_dict")
        return f"its weights are for {' x '.join(map(str, backbone.spec.input_size))}" if misfit else first_line(error).rstrip(".")
    if reason := input_size_problem(model, size):
        return reason
    own: Any = backbone.model.pretrained_cfg
    model.pretrained_cfg = {**own, "input_size": (3, *size)}  # type: ignore[assignment]
    return dataclasses.replace(backbone, model=model, model_args=args)


def _resized(backbone: Backbone, size: tuple[int, int], args: dict[str, Any]) -> nn.Module | None:
    """Resize by the network's own ``set_input_size``, which handles its grid and its windows.

    None if the network has no such method, or if it gives other shapes than a network that is built for ``size``.
    """
    source: Any = copy.deepcopy(backbone.model)
    if not hasattr(source, "set_input_size"):
        return None
    model = rebuild(backbone.architecture, args, backbone.head.out_features)
    try:
        windows = [tuple(stage.blocks[0].window_size) for stage in getattr(model, "layers", ())]  # of Swin, for each stage
        source.set_input_size(img_size=size, **({"window_size": windows} if windows else {}))
        model.load_state_dict(source.state_dict())
    except BUILD_ERRORS:
        return None
    return model


def _filtered(backbone: Backbone, size: tuple[int, int], args: dict[str, Any]) -> nn.Module:
    """Resize by the filter with which timm loads published weights. They are given as a state_dict, so that timm opens no file."""
    classes = backbone.head.out_features
    no_source = dict.fromkeys(("source", "file", "url", "hf_hub_id", "label_offset"))
    own = {"state_dict": dict(backbone.model.state_dict()), "custom_load": False, "num_classes": classes, "input_size": (3, *size)}
    overlay = {**no_source, **own}
    model = timm.create_model(backbone.architecture, pretrained=True, pretrained_cfg_overlay=overlay, **{**args, "num_classes": classes})
    assert isinstance(model, nn.Module)
    return model


def _fits(backbone: Backbone, size: tuple[int, int]) -> bool:
    return input_size_problem(backbone.model, size) is None or not isinstance(_built(backbone, size), str)


def _near(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Sizes around ``size`` whose sides are multiples of ``STEP``, the nearest first."""
    low = tuple(side // STEP * STEP for side in size)
    for away in range(0, FARTHEST, STEP):
        for sign in (-1, 1):
            height, width = (side + sign * away + (STEP if sign > 0 and away == 0 else 0) for side in low)
            if min(height, width) >= STEP and (height, width) != size:
                yield height, width


def _refused(backbone: Backbone, size: tuple[int, int], reason: str, near: tuple[tuple[int, int], ...]) -> ConfigError:
    advice = f"Leave --input-size out ({backbone.spec.input_size[0]} x {backbone.spec.input_size[1]})"
    if near:
        advice = f"The nearest sizes that it takes: {' and '.join(f'{height},{width}' for height, width in near)}"
    elif backbone.architecture.startswith(TORCHVISION):
        advice += ", or take timm's architecture of that name"
    return ConfigError(f"--input-size {size[0]},{size[1]}: {backbone.architecture} does not take images of that size: {reason}. {advice}.")
