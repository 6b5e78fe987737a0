"""Stages of a network, from the stem to the head, and freezing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from timm.models import group_parameters
from torch import nn

from edgetl.errors import ConfigError
from edgetl.train.networks.progressive import ProgressiveNetwork, last_column

STEM, HEAD = "stem", "head"
# Lateral connections of a progressive network's last column.
LATERALS = "laterals"


@dataclass(frozen=True)
class Stage:
    """Parameters that are frozen or trained together.

    Attributes:
        name: ``stem``, ``stage1``, ``stage2`` …, ``laterals`` where there are columns, and ``head``.
        parameters: their names.
    """

    name: str
    parameters: tuple[str, ...]


def find_stages(model: nn.Module, head_name: str) -> tuple[Stage, ...]:
    """The stages of ``model``, the stem first and the linear head last.

    timm's networks define their stages (``group_matcher(coarse=True)``); for others a stage is a numbered child (``features.3``) or a named
    one (``layer2``). A stage never ends inside a block. The stages of a progressive network are those of its last column, with the lateral
    connections as a stage before the head.
    """
    if isinstance(model, ProgressiveNetwork):
        prefix, column = last_column(model)
        *lower, head_stage = (
            Stage(stage.name, tuple(f"{prefix}{name}" for name in stage.parameters))
            for stage in find_stages(column, head_name.removeprefix(prefix))
        )
        into = f"laterals.{len(model.laterals) - 1}."
        laterals = tuple(name for name, _ in model.named_parameters() if name.startswith(into))
        return (*lower, Stage(LATERALS, laterals), head_stage)
    head = tuple(name for name, _ in model.named_parameters() if name.startswith(f"{head_name}."))
    groups: dict[Any, list[str]] = {}
    matcher = getattr(model, "group_matcher", None)
    numbers = group_parameters(model, matcher(coarse=True), reverse=True) if callable(matcher) else {}
    for name, _ in model.named_parameters():
        if name not in head:
            groups.setdefault(numbers.get(name, name if numbers else _prefix(name)), []).append(name)
    ordered = sorted(groups) if numbers else list(groups)
    names = [STEM, *(f"stage{index}" for index in range(1, len(ordered)))]
    return (*(Stage(name, tuple(groups[key])) for name, key in zip(names, ordered, strict=True)), Stage(HEAD, head))


def _prefix(name: str) -> str:
    """The first two parts of a parameter's name where the second is a number (``features.3``), else the first."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]


def choose_stages(stages: tuple[Stage, ...], unfreeze: str) -> tuple[Stage, ...]:
    """The stages that train under ``unfreeze``: a share of the backbone's stages counted from its end, ``stage4`` (that one and all after
    it), ``first`` (the stem and the first stage alone, for images that differ in noise or blur: Lee et al. 2023, arXiv:2210.11466).

    The head and lateral connections always train; the stem only under ``first`` or a share of 1.

    Raises:
        ConfigError: no such stage, or not a share.
    """
    lower = [stage for stage in stages if stage.name not in (LATERALS, HEAD)]
    end = stages[len(lower) :]
    if unfreeze == "first":
        return (*lower[:2], *end)
    if re.fullmatch(r"stage\d+", unfreeze):
        names = [stage.name for stage in lower]
        if unfreeze not in names:
            raise ConfigError(f"--unfreeze {unfreeze}: this network has {names[1]} to {names[-1]}.")
        return (*lower[names.index(unfreeze) :], *end)
    try:
        share = float(unfreeze)
    except ValueError:
        share = -1.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"--unfreeze {unfreeze}: give a share of the stages such as 0.33, a stage such as stage4, or first.")
    count = math.ceil(share * len(lower)) if share == 1.0 else min(len(lower) - 1, math.ceil(share * len(lower)))
    return (*lower[len(lower) - count :], *end)


def set_trainable(model: nn.Module, trained: tuple[Stage, ...], *, freeze_batchnorm: bool) -> None:
    """Train the stages ``trained`` and freeze the rest.

    Frozen modules go to evaluation mode: ``requires_grad`` alone does not stop BatchNorm's running statistics (Lightning issue 15062).
    Call it again after ``model.train()``.

    Args:
        model: the network, in training mode.
        trained: of its stages.
        freeze_batchnorm: also keep every BatchNorm's statistics, scales and offsets.
    """
    trainable = {name for stage in trained for name in stage.parameters}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    for path, module in model.named_modules():
        inside = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        if inside and not trainable.intersection(inside):
            module.eval()
        elif freeze_batchnorm and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval().requires_grad_(False)
