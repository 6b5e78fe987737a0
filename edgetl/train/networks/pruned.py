"""The layers of a pruned network: fewer channels than its architecture says, written down so that it can be built again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.errors import BackboneError

# Among a backbone's arguments: what no library knows, and `rebuild` reads itself.
PRUNED = "edgetl_pruned"
# Output channels, input channels and groups of a convolution; outputs and inputs of a linear layer; features of a BatchNorm.
Widths = dict[str, list[int]]


def widths_of(model: nn.Module) -> Widths:
    """The width of every layer that has one."""
    found: Widths = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = [module.out_channels, module.in_channels, module.groups]
        elif isinstance(module, nn.Linear):
            found[name] = [module.out_features, module.in_features]
        elif isinstance(module, _BatchNorm):
            found[name] = [module.num_features]
    return found


def resize(model: nn.Module, widths: Widths) -> None:
    """Set the widths of the named layers, with empty weights, before the weights of a pruned network are loaded.

    Raises:
        BackboneError: a layer is not there, or is not of the kind or as wide as its widths say.
    """
    modules, own = dict(model.named_modules()), widths_of(model)
    for name, width in widths.items():
        module, limits = modules.get(name), own.get(name, [])
        # Pruning only removes channels; the outputs of a linear layer, its first number, may follow the classes.
        wide = any(new > old for new, old in list(zip(width, limits, strict=False))[isinstance(module, nn.Linear) :])
        if len(width) != len(limits) or wide or (len(width) == 3 and width[1] % width[2]):
            raise BackboneError(f"a pruned network's record gives the layer {name[:80]!r} the widths {width}, which it cannot have.")
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels, module.groups = width
            _empty(module, "weight", width[0], width[1] // width[2], *module.kernel_size)
            _empty(module, "bias", width[0])
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = width
            _empty(module, "weight", *width)
            _empty(module, "bias", width[0])
        elif isinstance(module, _BatchNorm):
            (module.num_features,) = width
            for key in ("weight", "bias", "running_mean", "running_var"):
                _empty(module, key, *width)


def _empty(module: nn.Module, key: str, *shape: int) -> None:
    old: Any = getattr(module, key)
    if old is None:
        return
    new = torch.zeros(shape, dtype=old.dtype)
    setattr(module, key, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
