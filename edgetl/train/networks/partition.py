"""A network cut where its trained stages begin: what lies before the cut never changes and need run only once for each picture."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetl.train.networks.progressive import Columns
from edgetl.train.networks.stages import HEAD, Stage

# Of the largest value; the halves are the same layers in the same order, so that only rounding may differ.
MAX_RELATIVE_DIFFERENCE = 1e-4
# timm's names in vision transformers.
PATCHES, POSITIONS = "patch_embed", "_pos_embed"


@dataclass(frozen=True)
class Halves:
    """``tail(front(x))`` is the network; the tail's parameters keep their names.

    Attributes:
        front: the frozen layers.
        tail: the network with those layers taken out.
    """

    front: nn.Module
    tail: nn.Module


def cut(model: nn.Module, trained: Sequence[Stage], example: torch.Tensor) -> Halves | None:
    """Cut ``model`` before the first of ``trained``, which must be its last stages.

    Args:
        model: in evaluation mode.
        trained: the stages that learn, the head last.
        example: a few images, float32 ``[n, 3, H, W]``.

    Returns:
        The halves, compared with the whole on ``example``; none where the network is no chain at that place, and of several columns: what
        they hear of each other crosses the border at other places too.
    """
    if isinstance(model, Columns):
        return None
    learning = {name for stage in trained for name in stage.parameters}
    order, inputs = _watch(model, example)
    first = set(trained[0].parameters) if trained[0].name != HEAD else learning
    border = next((path for path in order if _inside(model, path) & first and not _inside(model, path) - learning), None)
    if border is None or border not in inputs:
        return None
    before = [path for path in order[: order.index(border)] if not _above(path, border) and not _inside(model, path) & learning]
    units = [path for path in before if not any(_above(other, path) for other in before)]
    tail = copy.deepcopy(model)
    for path in units:
        tail.set_submodule(path, nn.Identity())
    pieces = [copy.deepcopy(model.get_submodule(path)) for path in units]
    if hasattr(model, POSITIONS) and units[:1] == [PATCHES]:
        pieces.insert(1, _Positions(model))
        # Past the registry of modules: there, the class's own method would be found first.
        tail.__dict__[POSITIONS] = nn.Identity()
    halves = Halves(nn.Sequential(*pieces).eval(), tail)
    return halves if units and _agree(model, halves, inputs[border], example) else None


class _Positions(nn.Module):
    """The step of a vision transformer that is a method and no module: class tokens and position embeddings join the patches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.set_submodule("blocks", nn.Identity())

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches ``[batch, ...]`` → tokens ``[batch, tokens, width]``."""
        tokens: torch.Tensor = getattr(self.model, POSITIONS)(patches)
        return tokens


def _watch(model: nn.Module, example: torch.Tensor) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Names of the modules in the order in which they begin, and each one's first input."""
    order: list[str] = []
    inputs: dict[str, torch.Tensor] = {}

    def begin(path: str) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...]) -> None:
            if path not in inputs and given and isinstance(given[0], torch.Tensor):
                order.append(path)
                inputs[path] = given[0].clone()  # activations work in place

        return hook

    handles = [module.register_forward_pre_hook(begin(path)) for path, module in model.named_modules() if path]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return order, inputs


def _inside(model: nn.Module, path: str) -> set[str]:
    return {f"{path}.{name}" for name, _ in model.get_submodule(path).named_parameters()}


def _above(path: str, other: str) -> bool:
    return other.startswith(f"{path}.")


def _agree(model: nn.Module, halves: Halves, at_border: torch.Tensor, example: torch.Tensor) -> bool:
    """Whether the front gives what the border saw, and the tail on that what the whole network gives."""
    with torch.no_grad():
        whole = model(example)
        try:
            front = halves.front(example)
            end = halves.tail(front)
        except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError):
            return False
    pairs = ((front, at_border), (end, whole))
    return all(a.shape == b.shape and float((a - b).abs().max()) <= MAX_RELATIVE_DIFFERENCE * float(b.abs().max()) for a, b in pairs)
