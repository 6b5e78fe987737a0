"""Regularisation by chance, drawn anew in each step: residual branches that are left out, and pictures that are mixed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.layers import DropPath
from torch import nn

from edgetl.train.networks.progressive import newest

# What timm's networks call the place where a residual branch may be left out; an Identity where they were built without.
_PLACE = re.compile(r"(^|.*\.)drop_path\d*")


def drop_places(model: nn.Module) -> list[str]:
    """Names of the modules at the end of the residual branches of ``model``, from the stem on; empty where it has none by that name.

    Of several columns, those of the last one: the others are frozen.
    """
    prefix, column = newest(model)
    found = [name for name, module in column.named_modules() if _PLACE.fullmatch(name) and isinstance(module, nn.Identity | DropPath)]
    return [f"{prefix}{name}" for name in found]


@contextmanager
def dropping_paths(model: nn.Module, rate: float) -> Iterator[None]:
    """While entered, training ``model`` leaves residual branches out (stochastic depth: Huang et al. 2016, arXiv:1603.09382).

    The chance grows linearly from 0 in the first block to ``rate`` in the last one, as timm's ``drop_path_rate`` has it for ViT and
    ConvNeXt. Afterwards the network is as it was, so that nothing of this is exported; weights and their names do not change.
    """
    before = {name: model.get_submodule(name) for name in drop_places(model)}
    blocks = list(dict.fromkeys(name.rpartition(".")[0] for name in before))
    for name, module in before.items():
        share = rate * blocks.index(name.rpartition(".")[0]) / max(1, len(blocks) - 1)
        model.set_submodule(name, (DropPath(share) if share else nn.Identity()).train(module.training))
    try:
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)


def mix(images: torch.Tensor, labels: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mix each picture with another one of the batch (mixup: Zhang et al. 2018, arXiv:1710.09412), by torch's generator of the CPU.

    Args:
        images: float32 ``[batch, 3, H, W]``.
        labels: int64 ``[batch]``.
        alpha: shares are drawn from Beta(alpha, alpha).

    Returns:
        The mixed images, the labels of the lesser parts, and the share of the greater one, 0.5 to 1.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    share = max(share, 1.0 - share)
    order = torch.randperm(len(labels)).to(labels.device)
    return torch.lerp(images[order], images, share), labels[order], share
