"""Optimizer: parameter groups, learning-rate schedules, and the trainable stages at each step."""

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

# One-cycle schedule of the frozen steps, as in fastai's fine_tune: pct_start and div. FINAL_DIV is fastai's div_final.
FROZEN_RISE, FROZEN_DIV = 0.99, 25.0
FINAL_DIV = 1e5


def parameter_groups(model: nn.Module, stages: Sequence[Stage], plan: Plan) -> list[dict[str, Any]]:
    """Make the optimizer's parameter groups: two for each stage, with and without weight decay.

    The learning rate decreases geometrically from ``backbone_lr`` in the backbone's last stage to ``backbone_lr * lr_decay`` in the first
    stage of ``stages``. The rate of the first stage therefore does not depend on the number of stages. Lateral connections of progressive
    networks have the rate ``backbone_lr``. One-dimensional parameters (norms, biases) have no weight decay.

    Each group has its rate in ``lr``, because torch's optimizers ignore timm's ``lr_scale``.

    Args:
        model: Network.
        stages: Stages that are trained at any step. The head is the last.
        plan: Learning rates and weight decay.
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
    """Return the stages that are trained at ``step``.

    The strategy ``progressive`` trains the head alone at first, and adds one stage in each of equal intervals.
    """
    if step < plan.frozen_steps:
        return stages[-1:]
    if plan.strategy != "progressive":
        return stages
    lower = len(stages) - 1
    opened = min(lower, step * (lower + 1) // max(1, plan.steps))
    return stages[lower - opened :]


def make_schedule(optimizer: torch.optim.Optimizer, plan: Plan, *, first: int) -> LambdaLR:
    """Make the learning-rate schedule of ``plan``, starting at step ``first``. Each parameter group has the name of its ``stage``."""
    return LambdaLR(optimizer, [partial(_factor_after, plan, str(group["stage"]), first) for group in optimizer.param_groups])


def _factor_after(plan: Plan, stage: str, first: int, step: int) -> float:
    return rate_factor(plan, stage, first + step)


def learning_rates(optimizer: torch.optim.Optimizer, plan: Plan, step: int) -> dict[str, float]:
    """Return the learning rate of each stage at ``step``, counted from 0. The keys are ``lr/head``, ``lr/stage4`` …"""
    return {
        f"lr/{group['stage']}": group.get("initial_lr", group["lr"]) * rate_factor(plan, group["stage"], step)
        for group in optimizer.param_groups
    }


def rate_factor(plan: Plan, stage: str, step: int) -> float:
    """Compute the factor of the learning rate of ``stage`` at ``step``."""
    if step < plan.frozen_steps:
        if stage != HEAD:
            return 0.0
        return plan.frozen_lr / plan.lr * one_cycle(step, plan.frozen_steps, rise=FROZEN_RISE, div=FROZEN_DIV)
    done, steps = step - plan.frozen_steps, plan.steps - plan.frozen_steps
    if plan.schedule == "one-cycle":
        return one_cycle(done, steps, rise=plan.warmup_fraction, div=plan.div_factor)
    return warm_cosine(done, steps, plan.warmup_fraction)


def warm_cosine(step: int, steps: int, warmup_fraction: float) -> float:
    """Compute the learning-rate factor of a cosine schedule with warm-up.

    The factor is a linear warm-up over the first ``warmup_fraction`` of the steps, times half a cosine from 1 to 0 over all steps.
    """
    return min(1.0, (step + 1) / max(1.0, warmup_fraction * steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def one_cycle(step: int, steps: int, *, rise: float, div: float) -> float:
    """Compute the learning-rate factor of a one-cycle schedule.

    The factor increases from 1 / ``div`` to 1 over the first ``rise`` of the steps, and then decreases to 1e-5. Both parts are half
    cosines, as in fastai's ``fit_one_cycle`` (Smith and Topin 2017, arXiv:1708.07120, with cosines instead of lines).
    """
    done = min(1.0, step / max(1, steps))
    if done < rise:
        return _half_cosine(1 / div, 1.0, done / rise)
    return _half_cosine(1.0, 1 / FINAL_DIV, (done - rise) / (1 - rise))


def _half_cosine(start: float, end: float, done: float) -> float:
    return start + (end - start) * (1 - math.cos(math.pi * done)) / 2
