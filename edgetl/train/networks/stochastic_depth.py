"""Stochastic depth: drop residual branches at random during training (Huang et al. 2016, arXiv:1603.09382)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from timm.layers import DropPath
from torch import nn

from edgetl.train.networks.progressive import last_column

# timm's name of the module that drops a residual branch. It is an Identity in networks that were built without stochastic depth.
_DROP_PATH = re.compile(r"(^|.*\.)drop_path\d*")


def drop_path_layers(model: nn.Module) -> list[str]:
    """Return the names of the modules that can drop a residual branch, starting at the stem.

    For a progressive network, they are those of the last column.
    """
    prefix, column = last_column(model)
    found = [name for name, module in column.named_modules() if _DROP_PATH.fullmatch(name) and isinstance(module, nn.Identity | DropPath)]
    return [f"{prefix}{name}" for name in found]


@contextmanager
def stochastic_depth(model: nn.Module, rate: float) -> Iterator[None]:
    """Enable stochastic depth in ``model`` inside the ``with`` block. It has an effect in training mode only.

    The drop probability increases linearly from 0 in the first block to ``rate`` in the last block, as with timm's ``drop_path_rate`` for
    ViT and ConvNeXt. Weights and their names do not change. At the end of the block, the modules are restored, and an exported model
    contains no stochastic depth.
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
