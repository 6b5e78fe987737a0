"""Input size (``--input-size``, timm's ``img_size``): rebuild networks with a fixed input size, such as ViT and Swin, for another size."""

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

# Step and largest distance of the sizes that are tried for the error message, px. Patches of 16 px, and windows of 7 and 8 patches,
# divide some of these sizes.
STEP, FARTHEST = 16, 128


def with_input_size(backbone: Backbone, size: tuple[int, int]) -> Backbone:
    """Return ``backbone`` for images of ``size`` (height, width, px).

    A network that already supports the size is unchanged. Other networks are rebuilt for it, and timm interpolates their position
    embeddings and tables of relative positions. ``model_args`` then contains ``img_size``.

    Raises:
        ConfigError: If the network cannot be rebuilt for the size. The message lists the nearest supported sizes.
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
    """Check that ``model`` supports images of ``size`` (height, width, px). Return the problem, or None."""
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
    """Return a problem if ``size`` is not a multiple of the patch size. A patch embedding would ignore the pixels after the last patch."""
    for embedding in model.modules():
        if isinstance(embedding, PatchEmbed) and not embedding.dynamic_img_pad:
            height, width = embedding.patch_size
            if size[0] % height or size[1] % width:
                return f"both sides must be multiples of the patch size, {height} x {width} pixels"
    return None


def _built(backbone: Backbone, size: tuple[int, int]) -> Backbone | str:
    """Rebuild ``backbone`` for ``size``. Return the new backbone, or the problem."""
    args = {**backbone.model_args, "img_size": list(size)}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"timm\.layers\.interpolate")  # deprecation warning of torch's meshgrid indexing
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
    """Resize with the network's own method ``set_input_size``, which handles grid and windows.

    None if the network does not have the method, or its result has other shapes than a network that was built for ``size``.
    """
    source: Any = copy.deepcopy(backbone.model)
    if not hasattr(source, "set_input_size"):
        return None
    model = rebuild(backbone.architecture, args, backbone.head.out_features)
    try:
        windows = [tuple(stage.blocks[0].window_size) for stage in getattr(model, "layers", ())]  # window size of each stage of Swin
        source.set_input_size(img_size=size, **({"window_size": windows} if windows else {}))
        model.load_state_dict(source.state_dict())
    except BUILD_ERRORS:
        return None
    return model


def _filtered(backbone: Backbone, size: tuple[int, int], args: dict[str, Any]) -> nn.Module:
    """Resize with timm's checkpoint filter for pretrained weights. The weights are passed as a state_dict, and timm opens no file."""
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
    """Yield sizes around ``size`` with sides that are multiples of ``STEP``, the nearest first."""
    low = tuple(side // STEP * STEP for side in size)
    for distance in range(0, FARTHEST, STEP):
        for sign in (-1, 1):
            height, width = (side + sign * distance + (STEP if sign > 0 and distance == 0 else 0) for side in low)
            if min(height, width) >= STEP and (height, width) != size:
                yield height, width


def _refused(backbone: Backbone, size: tuple[int, int], reason: str, near: tuple[tuple[int, int], ...]) -> ConfigError:
    remedy = f"Remove --input-size to use {backbone.spec.input_size[0]} x {backbone.spec.input_size[1]}"
    if near:
        remedy = f"Nearest supported sizes: {' and '.join(f'{height},{width}' for height, width in near)}"
    elif backbone.architecture.startswith(TORCHVISION):
        remedy += ", or use timm's architecture of the same name"
    return ConfigError(f"--input-size {size[0]},{size[1]}: {backbone.architecture} does not support this size: {reason}. {remedy}.")
