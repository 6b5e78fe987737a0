"""Augmentation of training images (none, light, medium, strong), and mixup."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from edgetl.core.preprocess import PreprocessSpec
from edgetl.train.config.options import Augment

SMALLEST_CROP = {"light": 0.6, "medium": 0.35, "strong": 0.2}
# Class names for which a flipped image may belong to another class or to no class.
_SIDED = re.compile(r"(^|[^a-z])(left|right|clockwise|counterclockwise|letter|digit|number|sign|text|arrow)([^a-z]|$)")


def mirrors_well(labels: Sequence[str]) -> bool:
    """Return True if the class names suggest that a horizontal flip keeps the class.

    It is False for digits, single letters, signs, text, and left and right sides.
    """
    names = [label.lower() for label in labels]
    symbols = sum(bool(re.fullmatch(r"\d+|[a-z]", name)) for name in names)
    return symbols * 2 < len(names) and not any(_SIDED.search(name) for name in names)


def make_augmentation(level: Augment, spec: PreprocessSpec, *, flip: bool) -> v2.Transform | None:
    """Make the augmentation of a level: a transform from a decoded image to an image of the input size. None for the level ``none``.

    - ``light``: large random crops, and small changes of colors.
    - ``medium``: smaller crops, and TrivialAugmentWide (Mueller and Hutter 2021, arXiv:2103.10158) for half of the images.
    - ``strong``: the smallest crops, and TrivialAugmentWide for all images.

    Args:
        level: Level. ``auto`` is the same as ``light``.
        spec: Preprocessing, for the input size and the interpolation.
        flip: Flip half of the images horizontally.
    """
    if level == "none":
        return None
    filter_ = spec.interpolation if spec.interpolation in {item.value for item in InterpolationMode} else "bicubic"
    chosen = "light" if level == "auto" else level
    crop = v2.RandomResizedCrop(spec.input_size, scale=(SMALLEST_CROP[chosen], 1.0), interpolation=InterpolationMode(filter_))
    steps: list[nn.Module] = [crop]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if chosen == "light":
        steps.append(v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2))
    elif chosen == "medium":
        steps.append(v2.RandomApply([v2.TrivialAugmentWide()], 0.5))
    else:
        steps.append(v2.TrivialAugmentWide())
    return v2.Compose(steps)


def mixup(images: torch.Tensor, labels: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mix each image with another image of the batch (mixup: Zhang et al. 2018, arXiv:1710.09412). Uses torch's CPU generator.

    Args:
        images: float32 ``[batch, 3, H, W]``.
        labels: int64 ``[batch]``.
        alpha: Parameter of the distribution Beta(alpha, alpha) of the weight.

    Returns:
        The mixed images, the labels of the images with the smaller weight, and the larger weight, 0.5..1.
    """
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    weight = max(weight, 1.0 - weight)
    order = torch.randperm(len(labels)).to(labels.device)
    return torch.lerp(images[order], images, weight), labels[order], weight
