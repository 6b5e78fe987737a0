"""Augmentation of training images, from none to strong, and mixup."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from edgetl.core.preprocess import PreprocessSpec
from edgetl.train.config.options import Augment

SMALLEST_CROP = {"light": 0.6, "medium": 0.35, "strong": 0.2}
# Names of classes that a mirror image may turn into another class, or into none.
_SIDED = re.compile(r"(^|[^a-z])(left|right|clockwise|counterclockwise|letter|digit|number|sign|text|arrow)([^a-z]|$)")


def mirrors_well(labels: Sequence[str]) -> bool:
    """True if a mirror image keeps its class, by the class names; false for digits, single letters, signs, text and sides."""
    names = [label.lower() for label in labels]
    symbols = sum(bool(re.fullmatch(r"\d+|[a-z]", name)) for name in names)
    return symbols * 2 < len(names) and not any(_SIDED.search(name) for name in names)


def make_augmentation(level: Augment, spec: PreprocessSpec, *, flip: bool) -> v2.Transform | None:
    """From a decoded image to a changed one of the input size; none for ``none``.

    ``light`` crops and varies colors a little, ``medium`` crops more and applies TrivialAugmentWide (Mueller and Hutter 2021,
    arXiv:2103.10158) to half of the images, ``strong`` to all of them.
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
    """Mix each image with another one of the batch (mixup: Zhang et al. 2018, arXiv:1710.09412), by torch's CPU generator.

    Args:
        images: float32 ``[batch, 3, H, W]``.
        labels: int64 ``[batch]``.
        alpha: weights are drawn from Beta(alpha, alpha).

    Returns:
        The mixed images, the labels of the images with the lesser weight, and the greater weight, 0.5 to 1.
    """
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    weight = max(weight, 1.0 - weight)
    order = torch.randperm(len(labels)).to(labels.device)
    return torch.lerp(images[order], images, weight), labels[order], weight
