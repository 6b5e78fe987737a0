"""Partition of a network into frozen and trainable layers: the frozen ones run once for each image, and their outputs are stored."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetl.train.networks.progressive import ProgressiveNetwork
from edgetl.train.networks.stages import HEAD, Stage

# Of the largest value: both are the same layers in the same order, so that only rounding may differ.
MAX_RELATIVE_DIFFERENCE = 1e-4
# timm's names in vision transformers.
PATCHES, POSITIONS = "patch_embed", "_pos_embed"


@dataclass(frozen=True)
class Partition:
    """``trainable(frozen(x))`` is the network; the parameters of ``trainable`` keep their names."""

    frozen: nn.Module
    trainable: nn.Module


def split_frozen(model: nn.Module, trained: Sequence[Stage], example: torch.Tensor) -> Partition | None:
    """Split ``model`` before the first of ``trained``, which must be its last stages.

    Args:
        model: in evaluation mode.
        trained: the stages that train, the head last.
        example: a few images, float32 ``[n, 3, H, W]``.

    Returns:
        The partition, compared with the whole network on ``example``. None where the network is no chain of modules at that place, and for
        progressive networks, whose lateral connections cross it.
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
        # Past the registry of modules: there, the class's own method would be found first.
        rest.__dict__[POSITIONS] = nn.Identity()
    parts = Partition(nn.Sequential(*pieces).eval(), rest)
    return parts if units and _agrees(model, parts, inputs[start], example) else None


class _Positions(nn.Module):
    """The step of a vision transformer that is a method and no module: add class tokens and position embeddings to the patches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.set_submodule("blocks", nn.Identity())

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches ``[batch, ...]`` → tokens ``[batch, tokens, width]``."""
        tokens: torch.Tensor = getattr(self.model, POSITIONS)(patches)
        return tokens


def _trace(model: nn.Module, example: torch.Tensor) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Names of the modules in the order in which they first run, and each one's first input."""
    order: list[str] = []
    inputs: dict[str, torch.Tensor] = {}

    def hook_of(path: str) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...]) -> None:
            if path not in inputs and given and isinstance(given[0], torch.Tensor):
                order.append(path)
                inputs[path] = given[0].clone()  # activations work in place

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
    """True if the frozen part gives ``expected`` and both parts together the output of the whole network."""
    with torch.no_grad():
        whole = model(example)
        try:
            middle = parts.frozen(example)
            end = parts.trainable(middle)
        except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError):
            return False
    pairs = ((middle, expected), (end, whole))
    return all(a.shape == b.shape and float((a - b).abs().max()) <= MAX_RELATIVE_DIFFERENCE * float(b.abs().max()) for a, b in pairs)
