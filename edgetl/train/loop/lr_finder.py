"""``--lr auto``: a learning-rate range test (Smith 2017, arXiv:1506.01186) on a copy of the network, before it is tuned."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from edgetl.core.progress import Progress
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.inputs.dataset import Batches
from edgetl.train.inputs.samplers import draw_seed
from edgetl.train.networks.stages import set_trainable

if TYPE_CHECKING:
    from edgetl.train.loop.loop import Tuning

_log = logging.getLogger(__name__)

STEPS = 60
LOWEST, HIGHEST = 1e-6, 1.0
# The sweep ends where the loss is this many times that of answering at random, or of the untouched network if that is more.
BLOWN_UP = 4.0
# Standard deviation, in steps, of the bell that smooths the losses of single batches.
BELL = 2.0
# The chosen rate is at most this share of the one with the lowest loss, where the next step already makes it worse.
SAFETY = 0.1
# Steps at the lowest rates that are never chosen.
EDGE = 5
# A smaller fall, as a share of the loss at the lowest rates, says nothing: beside a fitted head the plan's rates do better.
LEAST_FALL = 0.1


@dataclass(frozen=True)
class Choice:
    """What a sweep says.

    Attributes:
        rates: of the head, float64 ``[n]``.
        smooth: losses, smoothed, float64 ``[n]``.
        rate: the chosen one, rounded to three digits; none where the loss did not fall.
    """

    rates: NDArray[np.float64]
    smooth: NDArray[np.float64]
    rate: float | None


def sweep_rates(module: Tuning, batches: Batches, *, device: str, clip_norm: float, progress: Progress) -> list[tuple[float, float]]:
    """The head's learning rate and the loss before the step at that rate, at up to 60 rates from 1e-6 to 1 in a geometric row.

    All groups rise together, in the plan's proportions. Each loss is corrected by how much harder its batch is for the untouched network
    than the others: beside a fitted head, the luck of the batch would hide what a step does. Network, batches and random generators are
    left as they were.
    """
    learning, untouched = _copy(module, device), _copy(module, device)
    loss_of: Any = copy.deepcopy(module.objective)
    loss_of.to(device)
    optimizer = torch.optim.AdamW(module.groups_of(learning))
    shares = [group["lr"] / module.plan.lr for group in optimizer.param_groups]
    rates, losses, before = [], [], []
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        for step, (images, labels) in zip(range(STEPS), _endless(batches), strict=False):
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
            new = module.new_rows(labels)
            truth, seed = labels[new].to(device), draw_seed(module.seed, step)
            with torch.no_grad():
                start = float(loss_of(_forward(untouched, images.to(device), seed)[new], truth))
            loss = loss_of(_forward(learning, images.to(device), seed)[new], truth)
            value = float(loss.detach())
            # BatchNorm may begin far off on unlike images.
            if not math.isfinite(value) or value > BLOWN_UP * max(module.objective.chance, start):
                break
            rates.append(rate)
            losses.append(value)
            before.append(start)
            for group, share in zip(optimizer.param_groups, shares, strict=True):
                group["lr"] = rate * share
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learning.parameters(), clip_norm)
            optimizer.step()
            progress("looking for a learning rate", step + 1, STEPS)
    usual = sum(before) / max(1, len(before))
    return [(rate, usual + value - start) for rate, value, start in zip(rates, losses, before, strict=True)]


def _copy(module: Tuning, device: str) -> nn.Module:
    model = copy.deepcopy(module.model).to(device).train()
    set_trainable(model, module.trained, freeze_batchnorm=module.plan.freeze_batchnorm)
    return model


def _forward(model: nn.Module, images: torch.Tensor, seed: int) -> torch.Tensor:
    """Logits; dropout is the same for the same seed."""
    torch.manual_seed(seed)
    logits: torch.Tensor = model(images)
    return logits


def _endless(batches: Batches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from batches


def choose_rate(sweep: list[tuple[float, float]]) -> Choice:
    """The rate at which the smoothed loss falls most steeply, among those of at most a tenth of the rate with the lowest loss."""
    rates, losses = np.array(sweep, np.float64).reshape(-1, 2).T
    places = np.arange(len(rates))
    bell = np.exp(-0.5 * ((places[:, None] - places) / BELL) ** 2)
    smooth = (bell @ losses) / bell.sum(axis=1)
    if len(rates) < 3:
        return Choice(rates, smooth, None)
    bottom = int(smooth.argmin())
    allowed = places[rates <= rates[bottom] * SAFETY]
    if not len(allowed) or smooth[0] - smooth[bottom] < LEAST_FALL * smooth[0]:
        return Choice(rates, smooth, None)
    slope = np.gradient(smooth)
    steepest = allowed[slope[allowed].argmin()]
    # Nothing has been learned at the lowest rates: a fall that begins there is none.
    return Choice(rates, smooth, float(f"{rates[steepest]:.2e}") if steepest > EDGE and slope[steepest] < 0 else None)


def with_sweep(plan: Plan, sweep: list[tuple[float, float]], config: TrainConfig) -> Plan:
    """``plan`` at the rate that ``sweep`` says, all groups in the same proportions but for a ``--backbone-lr`` that was given."""
    rate = choose_rate(sweep).rate if sweep else None
    if rate is None:
        return plan
    top = plan.backbone_lr if config.optim.backbone_lr else rate * (plan.backbone_lr / plan.lr)
    frozen = rate * (plan.frozen_lr / plan.lr)
    return plan.model_copy(update={"lr": rate, "backbone_lr": top, "frozen_lr": frozen, "lr_found": rate})


def tell(plan: Plan) -> None:
    """Say which rate was chosen, and why."""
    if plan.lr_found is None:
        _log.info("--lr auto: the loss did not clearly fall in the range test; the plan's %.1e is kept", plan.lr)
    else:
        _log.info("--lr auto: %.2e (head), where the loss fell most steeply, a tenth of where it was lowest at most", plan.lr_found)


def draw_sweep(choice: Choice, path: Path) -> None:
    """Write a learning-rate range test as a PNG: the smoothed loss over the head's rate, and the one that was chosen."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(choice.rates, choice.smooth)
    if choice.rate is not None:
        axes.axvline(choice.rate, color="#cb181d", linestyle="--", label=f"chosen: {choice.rate:.1e}")
        axes.legend(fontsize=8)
    axes.set_xlabel("learning rate of the head")
    axes.set_ylabel("training loss, smoothed")
    axes.set_title(
        "range test" if choice.rate is not None else "range test: the loss did not clearly fall, the plan's rate is kept", fontsize=10
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
