"""Learning rates by step: a warm cosine or a one-cycle over all groups, after a start in which the head may learn alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from edgetl.train.config.plan import Plan
from edgetl.train.loop.fitting import warm_cosine
from edgetl.train.networks.stages import HEAD

# Of the head's own start (fastai's fine_tune: pct_start, and fit_one_cycle's div), and of the last rate of a cycle (div_final).
FROZEN_RISE, FROZEN_DIV = 0.99, 25.0
FINAL_DIV = 1e5


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


def rate_factor(plan: Plan, stage: str, step: int) -> float:
    """What the rate of ``stage`` in ``plan`` is multiplied with at ``step``."""
    if step < plan.frozen_steps:
        if stage != HEAD:
            return 0.0
        return plan.frozen_lr / plan.lr * one_cycle(step, plan.frozen_steps, rise=FROZEN_RISE, div=FROZEN_DIV)
    done, steps = step - plan.frozen_steps, plan.steps - plan.frozen_steps
    return (
        one_cycle(done, steps, rise=plan.warmup_fraction, div=plan.div_factor)
        if plan.schedule == "one-cycle"
        else warm_cosine(done, steps, plan.warmup_fraction)
    )


def planned(optimizer: torch.optim.Optimizer, plan: Plan, *, first: int) -> dict[str, Any]:
    """``optimizer``, whose groups name their ``stage``, with the plan's rates from step ``first`` on, as Lightning wants them."""
    factors: list[Callable[[int], float]] = [partial(_shifted, plan, str(group["stage"]), first) for group in optimizer.param_groups]
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factors), "interval": "step"},
    }


def _shifted(plan: Plan, stage: str, first: int, step: int) -> float:
    return rate_factor(plan, stage, first + step)
