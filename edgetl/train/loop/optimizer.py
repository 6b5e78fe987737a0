"""Optimizer: parameter groups, learning-rate schedules, and the stages that are trainable at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from edgetl.train.config.plan import Plan
from edgetl.train.networks.stages import HEAD, LATERALS, Stage

# Of the head's own start (fastai's fine_tune: pct_start, and fit_one_cycle's div), and of the last rate of a cycle (div_final).
FROZEN_RISE, FROZEN_DIV = 0.99, 25.0
FINAL_DIV = 1e5


def parameter_groups(model: nn.Module, stages: Sequence[Stage], plan: Plan) -> list[dict[str, Any]]:
    """Optimizer groups, two a stage, each with a learning rate of its own in ``lr``.

    timm's ``lr_scale`` would be ignored by torch's optimizers. From the backbone's last stage (``backbone_lr``) the rate falls to
    ``backbone_lr * lr_decay`` at the lowest stage of ``stages``: a fixed factor a stage would mean another end for each depth. Lateral
    connections of columns learn at ``backbone_lr``. One-dimensional parameters (norms, biases) get no weight decay.

    Args:
        model: the network.
        stages: those that ever train, the head last.
        plan: the rates.
    """
    named = dict(model.named_parameters())
    lower = [stage for stage in stages if stage.name not in (LATERALS, HEAD)]
    groups = []
    for stage in stages:
        if stage.name == HEAD:
            lr = plan.lr
        elif stage.name == LATERALS:
            lr = plan.backbone_lr
        else:
            lr = plan.backbone_lr * plan.lr_decay ** ((len(lower) - 1 - lower.index(stage)) / max(1, len(lower) - 1))
        for decays in (True, False):
            parameters = [named[name] for name in stage.parameters if (named[name].ndim > 1) == decays]
            if parameters:
                decay = plan.weight_decay if decays else 0.0
                groups.append({"params": parameters, "lr": lr, "weight_decay": decay, "stage": stage.name})
    return groups


def trainable_stages(stages: tuple[Stage, ...], plan: Plan, step: int) -> tuple[Stage, ...]:
    """The stages that train at ``step``: in ``progressive`` the head alone at first, then one more in each equal interval."""
    if step < plan.frozen_steps:
        return stages[-1:]
    if plan.strategy != "progressive":
        return stages
    lower = len(stages) - 1
    opened = min(lower, step * (lower + 1) // max(1, plan.steps))
    return stages[lower - opened :]


def make_schedule(optimizer: torch.optim.Optimizer, plan: Plan, *, first: int) -> LambdaLR:
    """The plan's learning rates from step ``first`` on, for an optimizer whose groups name their ``stage``."""
    return LambdaLR(optimizer, [partial(_factor_after, plan, str(group["stage"]), first) for group in optimizer.param_groups])


def _factor_after(plan: Plan, stage: str, first: int, step: int) -> float:
    return rate_factor(plan, stage, first + step)


def learning_rates(optimizer: torch.optim.Optimizer, plan: Plan, step: int) -> dict[str, float]:
    """Learning rate of each stage at ``step``, counted from 0: ``lr/head``, ``lr/stage4`` …"""
    return {
        f"lr/{group['stage']}": group.get("initial_lr", group["lr"]) * rate_factor(plan, group["stage"], step)
        for group in optimizer.param_groups
    }


def rate_factor(plan: Plan, stage: str, step: int) -> float:
    """Factor of the learning rate of ``stage`` at ``step``."""
    if step < plan.frozen_steps:
        if stage != HEAD:
            return 0.0
        return plan.frozen_lr / plan.lr * one_cycle(step, plan.frozen_steps, rise=FROZEN_RISE, div=FROZEN_DIV)
    done, steps = step - plan.frozen_steps, plan.steps - plan.frozen_steps
    if plan.schedule == "one-cycle":
        return one_cycle(done, steps, rise=plan.warmup_fraction, div=plan.div_factor)
    return warm_cosine(done, steps, plan.warmup_fraction)


def warm_cosine(step: int, steps: int, warmup_fraction: float) -> float:
    """Factor of the learning rate: linear over the first ``warmup_fraction`` of the steps, times half a cosine to 0 over all of them."""
    return min(1.0, (step + 1) / max(1.0, warmup_fraction * steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def one_cycle(step: int, steps: int, *, rise: float, div: float) -> float:
    """Factor of the learning rate: half a cosine from 1 / ``div`` to 1 over the first ``rise`` of the steps, then one down to 1e-5.

    The shape is that of fastai's ``fit_one_cycle`` (Smith and Topin 2017, arXiv:1708.07120, with cosines instead of lines).
    """
    done = min(1.0, step / max(1, steps))
    if done < rise:
        return _between(1 / div, 1.0, done / rise)
    return _between(1.0, 1 / FINAL_DIV, (done - rise) / (1 - rise))


def _between(start: float, end: float, done: float) -> float:
    return start + (end - start) * (1 - math.cos(math.pi * done)) / 2
