"""Partition of a network into frozen and trainable layers. The activation cache runs the frozen layers once per image."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetl.train.networks.progressive import ProgressiveNetwork
from edgetl.train.networks.stages import HEAD, Stage

# Largest difference to the whole network, relative to the largest value. The layers are the same, and only rounding may differ.
MAX_RELATIVE_DIFFERENCE = 1e-4
# timm's names of module and method in vision transformers.
PATCHES, POSITIONS = "patch_embed", "_pos_embed"


@dataclass(frozen=True)
class Partition:
    """Two parts of a network: ``trainable(frozen(x))`` is its output. The parameters of ``trainable`` keep their names."""

    frozen: nn.Module
    trainable: nn.Module


def split_frozen(model: nn.Module, trained: Sequence[Stage], example: torch.Tensor) -> Partition | None:
    """Split ``model`` before the first of the stages ``trained``, which must be its last stages.

    The partition is compared with the whole network on ``example``.

    Args:
        model: Network in evaluation mode.
        trained: Stages that are trained. The head is the last.
        example: float32 ``[n, 3, H, W]``, a few images.

    Returns:
        The partition. None if the network is not a chain of modules at this stage. Also None for progressive networks, because their
        lateral connections connect the two parts.
    """
    if isinstance(model, ProgressiveNetwork):
        return None
    trainable = {name for stage in trained for name in stage.parameters}
    order, inputs = _trace(model, example)
    first = set(trained[0].parameters) if trained[0].name != HEAD else trainable
    start = next((path for path in order if _inside(model, path) & first and not _inside(model, path) - trainable), None)
    if start is None:
        return None
    before = [path for path in order[: order.index(start)] if not _contains(path, start) and not _inside(model, path) & trainable]
    units = [path for path in before if not any(_contains(other, path) for other in before)]
    rest = copy.deepcopy(model)
    for path in units:
        rest.set_submodule(path, nn.Identity())
    pieces = [copy.deepcopy(model.get_submodule(path)) for path in units]
    if hasattr(model, POSITIONS) and units[:1] == [PATCHES]:
        pieces.insert(1, _Positions(model))
        # Set the attribute in __dict__, because a registered submodule would not override the method of the class.
        rest.__dict__[POSITIONS] = nn.Identity()
    parts = Partition(nn.Sequential(*pieces).eval(), rest)
    return parts if units and _agrees(model, parts, inputs[start], example) else None


class _Positions(nn.Module):
    """Position embedding of a vision transformer as a module. In timm it is a method, which adds class tokens and position embeddings."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.set_submodule("blocks", nn.Identity())

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Add class tokens and position embeddings: patches ``[batch, ...]`` → tokens ``[batch, tokens, width]``."""
        tokens: torch.Tensor = getattr(self.model, POSITIONS)(patches)
        return tokens


def _trace(model: nn.Module, example: torch.Tensor) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Return the names of all modules in the order of their first call, and the first input of each."""
    order: list[str] = []
    inputs: dict[str, torch.Tensor] = {}

    def hook_of(path: str) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...]) -> None:
            if path not in inputs and given and isinstance(given[0], torch.Tensor):
                order.append(path)
                inputs[path] = given[0].clone()  # in-place activations may change it later

        return hook

    handles = [module.register_forward_pre_hook(hook_of(path)) for path, module in model.named_modules() if path]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return order, inputs


def _inside(model: nn.Module, path: str) -> set[str]:
    return {f"{path}.{name}" for name, _ in model.get_submodule(path).named_parameters()}


def _contains(path: str, other: str) -> bool:
    return other.startswith(f"{path}.")


def _agrees(model: nn.Module, parts: Partition, expected: torch.Tensor, example: torch.Tensor) -> bool:
    """Return True if the output of the frozen part is ``expected``, and both parts together have the output of the whole network."""
    with torch.no_grad():
        whole = model(example)
        try:
            middle = parts.frozen(example)
            end = parts.trainable(middle)
        except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError):
            return False
    pairs = ((middle, expected), (end, whole))
    return all(a.shape == b.shape and float((a - b).abs().max()) <= MAX_RELATIVE_DIFFERENCE * float(b.abs().max()) for a, b in pairs)
