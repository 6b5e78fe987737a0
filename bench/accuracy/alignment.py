"""Alignment of features in a domain adaptation: Deep CORAL, MMD with several kernels, and domain-adversarial training (DANN).

``bench.accuracy.adaptation`` measures them beside the methods of ``edgetl adapt``. Each is a loss of the pooled features of a source batch
and a target batch. The training is that of ``edgetl adapt``: cross-entropy of the source batch, and BatchNorm with the statistics of each
domain. Combinations such as ``mcc+coral`` also have the loss of ``mcc``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.core.metrics import evaluate
from edgetl.data.folder import scan
from edgetl.data.loading import truth_of
from edgetl.train.adaptation.batchnorm import adapt_batchnorm
from edgetl.train.adaptation.scores import diversity, information
from edgetl.train.adaptation.training import TargetTraining, make_objective, train_on_target
from edgetl.train.artifacts.run import open_run
from edgetl.train.config.adaptation.options import AdaptationConfig, default_steps
from edgetl.train.inputs.dataset import Batches
from edgetl.train.inputs.features import features_of
from edgetl.train.loop.loop import Objective
from edgetl.train.loop.losses import StepOutputs
from edgetl.train.loop.processes import Execution

# Bandwidths of the Gaussian kernels, relative to the mean squared distance: five factors of two, as in DALIB.
BANDWIDTHS = tuple(2.0**power for power in range(-3, 2))
# Width of the hidden layers of the domain discriminator (Ganin et al. 2016, arXiv:1505.07818), and its learning rate.
HIDDEN, DISCRIMINATOR_LR = 1024, 1e-3
# Slope of the weight of the reversed gradient (Ganin et al. 2016).
SLOPE = 10.0

ALIGNMENTS = ("coral", "mmd", "dann")
Alignment = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def coral(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute the squared Frobenius norm of the difference of the covariances (Deep CORAL: Sun and Saenko 2016, arXiv:1607.01719).

    It is relative to the squared norms of both. The paper divides by the squared width, and chooses a weight with which this loss and the
    cross-entropy are about equal. A relative loss needs no such weight.

    Args:
        source: float ``[batch, width]``.
        target: float ``[batch, width]``.
    """
    first, second = source.T.cov(), target.T.cov()
    return (first - second).square().sum() / (first.square().sum() + second.square().sum()).clamp_min(1e-12)


def mmd(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute the maximum mean discrepancy with a sum of Gaussian kernels (DAN: Long et al. 2015, arXiv:1502.02791), without bias.

    Args:
        source: float ``[batch, width]``.
        target: float ``[batch, width]``.
    """
    features, count = torch.cat([source, target]), len(source)
    distances = (features[:, None] - features[None]).square().sum(dim=2)
    mean = distances.mean().detach().clamp_min(1e-12)
    kernel = torch.stack([torch.exp(-distances / (2 * factor * mean)) for factor in BANDWIDTHS]).sum(dim=0)
    kernel = kernel - torch.diag(kernel.diagonal())
    within = sum(part.sum() / (len(part) * (len(part) - 1)) for part in (kernel[:count, :count], kernel[count:, count:]))
    return within - 2 * kernel[:count, count:].mean()


class DomainAdversary:
    """Domain-adversarial loss (DANN: Ganin et al. 2016): a discriminator of the domains, and reversed gradients for the features.

    The weight of the reversed gradients increases from 0 to 1 over the training.

    Args:
        width: width of the features.
        steps: optimizer steps of the training.
    """

    def __init__(self, width: int, steps: int) -> None:
        self.discriminator = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=DISCRIMINATOR_LR)
        self.step, self.steps = 0, steps

    def __call__(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the cross-entropy of the discriminator. The gradients of the last step are applied to it first."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        weight = 2 / (1 + math.exp(-SLOPE * self.step / self.steps)) - 1
        self.step += 1
        features = torch.cat([source, target])
        reversed_ = (1 + weight) * features.detach() - weight * features
        domains = torch.cat([torch.ones(len(source)), torch.zeros(len(target))])
        return F.binary_cross_entropy_with_logits(self.discriminator(reversed_).squeeze(1), domains)


class AlignmentTerm:
    """Loss term of the pooled features of the last two batches that the network has processed: target, then source.

    Args:
        head: head of the network. Its inputs are the features.
        align: loss of the features of the source and of the target batch.
    """

    weight = 1.0

    def __init__(self, head: nn.Module, align: Alignment) -> None:
        self.align = align
        self.features: deque[torch.Tensor] = deque(maxlen=2)
        head.register_forward_pre_hook(self._keep)

    def __call__(self, _step: StepOutputs, /) -> torch.Tensor:
        target, source = self.features
        return self.align(source, target)

    def _keep(self, _head: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self.features.append(given[0])


def aligned_objective(name: str, training: TargetTraining, network: nn.Module, source: Batches | None) -> Objective:
    """Make the loss terms of ``edgetl adapt``, with the alignment ``name`` in place of ``mcc``, or with both (``mcc+coral``)."""
    objective = make_objective(training, network, source)
    *others, last = name.split("+")
    objective.task.weight = float("mcc" in others)
    head = network.get_submodule(training.start.head_name)
    assert isinstance(head, nn.Linear)
    losses: dict[str, Callable[[], Alignment]] = {
        "coral": lambda: coral,
        "mmd": lambda: mmd,
        "dann": lambda: DomainAdversary(head.in_features, training.steps),
    }
    return replace(objective, others={**objective.others, "alignment": AlignmentTerm(head, losses[last]())})


def measure_alignment(run_path: Path, target_path: Path, name: str, seed: int) -> dict[str, Any]:
    """Adapt a run with the alignment ``name``, and return its accuracy on the target images and the scores without labels."""
    run, folder = open_run(run_path), scan(target_path)
    config = AdaptationConfig(method="mcc", seed=seed)
    with TemporaryDirectory() as work:
        execution = Execution("cpu", Path(work), seed=seed, batch_size=config.batch_size)
        target = tuple(replace(sample, label=position) for position, sample in enumerate(folder.samples))
        source = run.backbone()
        start = adapt_batchnorm(source, target, execution, source=source.model)
        training = TargetTraining(
            method="mcc",
            labels=run.record.labels,
            run=source,
            start=start,
            target=target,
            source=run.samples("train"),
            pseudo_labels=torch.zeros(len(target), dtype=torch.int64),
            plan=run.record.plan,
            steps=default_steps(len(target), config.batch_size),
            config=config,
            execution=execution,
        )
        model = train_on_target(training, lambda *given: aligned_objective(name, *given))
        adapted = adapt_batchnorm(replace(start, model=model), target, execution, source=source.model)
        features = features_of(adapted, config.batch_size, device="cpu", images=len(target))(target)
        with torch.no_grad():
            outputs = adapted.head(torch.from_numpy(features)).numpy()
    scores = torch.from_numpy(outputs).softmax(dim=1).numpy()
    accuracy = evaluate(run.record.decoding, truth_of(folder.samples), outputs).accuracy
    assert accuracy is not None
    return {"accuracy": accuracy.value, "information": information(scores), "diversity": diversity(scores)}
