"""Stochastic depth: training drops residual branches at random (Huang et al. 2016, arXiv:1603.09382)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from timm.layers import DropPath
from torch import nn

from edgetl.train.networks.progressive import last_column

# timm's name for the module that drops a residual branch; an Identity in networks that were built without.
_PLACE = re.compile(r"(^|.*\.)drop_path\d*")


def drop_path_layers(model: nn.Module) -> list[str]:
    """Names of the modules that may drop a residual branch of ``model``, from the stem on; of a progressive network, its last column's."""
    prefix, column = last_column(model)
    found = [name for name, module in column.named_modules() if _PLACE.fullmatch(name) and isinstance(module, nn.Identity | DropPath)]
    return [f"{prefix}{name}" for name in found]


@contextmanager
def stochastic_depth(model: nn.Module, rate: float) -> Iterator[None]:
    """Drop residual branches of ``model`` in training mode while the context is entered.

    The probability grows linearly from 0 in the first block to ``rate`` in the last one, as with timm's ``drop_path_rate`` for ViT and
    ConvNeXt. Weights and their names do not change, and the context restores the modules: nothing of this is exported.
    """
    before = {name: model.get_submodule(name) for name in drop_path_layers(model)}
    blocks = list(dict.fromkeys(name.rpartition(".")[0] for name in before))
    for name, module in before.items():
        probability = rate * blocks.index(name.rpartition(".")[0]) / max(1, len(blocks) - 1)
        model.set_submodule(name, (DropPath(probability) if probability else nn.Identity()).train(module.training))
    try:
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)
