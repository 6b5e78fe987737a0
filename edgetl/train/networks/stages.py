"""Stages of a network, from the stem to the head, and freezing of stages."""

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
    """Stage: parameters that are frozen or trained together.

    Attributes:
        name: ``stem``, ``stage1``, ``stage2`` …, ``laterals`` (progressive networks) or ``head``.
        parameters: Names of the parameters.
    """

    name: str
    parameters: tuple[str, ...]


def find_stages(model: nn.Module, head_name: str) -> tuple[Stage, ...]:
    """Find the stages of ``model``, the stem first and the linear head last.

    timm's networks define their stages (``group_matcher(coarse=True)``). In other networks, a stage is a numbered child (``features.3``) or
    a named child (``layer2``). A stage never ends inside a block. The stages of a progressive network are those of its last column, with
    the lateral connections as an additional stage before the head.
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
    """Return the first two parts of a parameter's name if the second is a number (``features.3``), else the first part."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]


def choose_stages(stages: tuple[Stage, ...], unfreeze: str) -> tuple[Stage, ...]:
    """Choose the stages that are trained with the value ``unfreeze``.

    - A fraction, such as ``0.33``: this fraction of the backbone's stages, counted from the end.
    - A stage, such as ``stage4``: this stage and all after it.
    - ``first``: the stem and the first stage, for images that differ in noise or blur (Lee et al. 2023, arXiv:2210.11466).

    The head and lateral connections are always trained. The stem is trained with ``first`` or a fraction of 1 only.

    Raises:
        ConfigError: If there is no such stage, or the value is not a fraction.
    """
    lower = [stage for stage in stages if stage.name not in (LATERALS, HEAD)]
    end = stages[len(lower) :]
    if unfreeze == "first":
        return (*lower[:2], *end)
    if re.fullmatch(r"stage\d+", unfreeze):
        names = [stage.name for stage in lower]
        if unfreeze not in names:
            raise ConfigError(f"--unfreeze {unfreeze}: this network has the stages {names[1]} to {names[-1]}.")
        return (*lower[names.index(unfreeze) :], *end)
    try:
        fraction = float(unfreeze)
    except ValueError:
        fraction = -1.0
    if not 0.0 < fraction <= 1.0:
        raise ConfigError(f"--unfreeze {unfreeze}: give a fraction of the stages such as 0.33, a stage such as stage4, or first.")
    count = math.ceil(fraction * len(lower)) if fraction == 1.0 else min(len(lower) - 1, math.ceil(fraction * len(lower)))
    return (*lower[len(lower) - count :], *end)


def set_trainable(model: nn.Module, trained: tuple[Stage, ...], *, freeze_batchnorm: bool) -> None:
    """Make the stages ``trained`` trainable, and freeze all others.

    Frozen modules are set to evaluation mode, because ``requires_grad`` does not stop the running statistics of BatchNorm (Lightning issue
    15062). Call this function again after ``model.train()``.

    Args:
        model: Network in training mode.
        trained: Stages to train.
        freeze_batchnorm: Also freeze statistics, scales and offsets of every BatchNorm.
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
