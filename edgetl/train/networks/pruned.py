"""Pruned networks: record the sizes of the layers, and rebuild the network from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.errors import BackboneError

# Key among the arguments of a backbone. `rebuild` removes it before it calls timm or torchvision.
PRUNED = "edgetl_pruned"
# Sizes by layer name. Convolution: output channels, input channels, groups. Linear layer: outputs, inputs. BatchNorm: features.
LayerSizes = dict[str, list[int]]


def layer_sizes(model: nn.Module) -> LayerSizes:
    """Return the sizes of all convolutions, linear layers and BatchNorm layers."""
    found: LayerSizes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = [module.out_channels, module.in_channels, module.groups]
        elif isinstance(module, nn.Linear):
            found[name] = [module.out_features, module.in_features]
        elif isinstance(module, _BatchNorm):
            found[name] = [module.num_features]
    return found


def set_layer_sizes(model: nn.Module, sizes: LayerSizes) -> None:
    """Set the sizes of layers. Their weights are zeros until the weights of the pruned network are loaded.

    Raises:
        BackboneError: If a layer does not exist, has another type, or is smaller than its recorded sizes.
    """
    modules, own = dict(model.named_modules()), layer_sizes(model)
    for name, size in sizes.items():
        module, limits = modules.get(name), own.get(name, [])
        # Pruning only removes channels. The outputs of a linear layer (its first size) may change with the number of classes.
        larger = any(new > old for new, old in list(zip(size, limits, strict=False))[isinstance(module, nn.Linear) :])
        if len(size) != len(limits) or larger or (len(size) == 3 and size[1] % size[2]):
            raise BackboneError(f"the record of the pruned network is invalid: the layer {name[:80]!r} cannot have the sizes {size}.")
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels, module.groups = size
            _zeros(module, "weight", size[0], size[1] // size[2], *module.kernel_size)
            _zeros(module, "bias", size[0])
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = size
            _zeros(module, "weight", *size)
            _zeros(module, "bias", size[0])
        elif isinstance(module, _BatchNorm):
            (module.num_features,) = size
            for key in ("weight", "bias", "running_mean", "running_var"):
                _zeros(module, key, *size)


def _zeros(module: nn.Module, key: str, *shape: int) -> None:
    old: Any = getattr(module, key)
    if old is None:
        return
    new = torch.zeros(shape, dtype=old.dtype)
    setattr(module, key, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
