"""Continual learning in one training: previous task, Fisher information, replayed images, and their loss terms."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from edgetl.core.preprocess import preprocess
from edgetl.data.folder import Sample
from edgetl.data.loading import stratified
from edgetl.data.split import Splits
from edgetl.errors import ConfigError
from edgetl.train.artifacts.record import FISHER_NAME
from edgetl.train.config.options import ContinualConfig
from edgetl.train.continual.ewc import EWC, measure_fisher
from edgetl.train.continual.l2sp import L2SP
from edgetl.train.continual.lwf import LwF
from edgetl.train.continual.previous_task import HeadInput, PreviousTask, copy_previous_head
from edgetl.train.continual.replay import UNLABELED, ReplayTerm, choose_replayed
from edgetl.train.inputs.features import features_of
from edgetl.train.loop.losses import LossTerm
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.stages import HEAD, Stage

_log = logging.getLogger(__name__)

# Enough for a stable diagonal. Each image costs one forward and one backward pass.
FISHER_IMAGES = 200


@dataclass(frozen=True)
class ContinualLearning:
    """Prepared inputs of continual learning.

    Attributes:
        previous: task of the starting weights. ``None`` if no term needs it.
        fisher: importance of each weight for the previous task, by parameter name (EWC).
        replay: images that are mixed into the batches, labeled as in ``edgetl.train.continual.replay``.
    """

    previous: PreviousTask | None = None
    fisher: dict[str, torch.Tensor] = field(default_factory=dict)
    replay: tuple[Sample, ...] = ()

    @property
    def keeps_head(self) -> bool:
        """True if the training starts with the previous head. Otherwise a new head is fitted first."""
        return self.previous is not None and self.previous.places is not None and not self.replay

    def loss_terms(
        self, network: nn.Module, head_input: HeadInput, config: ContinualConfig, start: Mapping[str, torch.Tensor]
    ) -> dict[str, LossTerm]:
        """Return the active loss terms by name: ``replay``, ``lwf`` and ``l2sp``.

        Args:
            network: network with its starting weights, on its device.
            head_input: input of the network's head.
            config: weights of the terms.
            start: starting weights of the trained layers, without the head.
        """
        terms: dict[str, LossTerm] = {}
        if self.previous is not None and any(UNLABELED < sample.label < 0 for sample in self.replay):
            terms["replay"] = ReplayTerm(self.previous, head_input, device=next(network.parameters()).device)
        if self.previous is not None and config.lwf:
            terms["lwf"] = LwF(network, self.previous, head_input, weight=config.lwf)
        if config.l2sp and start:
            terms["l2sp"] = L2SP(network, start, weight=config.l2sp)
        return terms

    def proximal_terms(self, network: nn.Module, strength: float) -> list[EWC]:
        """Return the EWC term, or an empty list if EWC is off. ``network`` has its starting weights and is on its device."""
        return [EWC(network, self.fisher, strength)] if self.fisher else []


def prepare_continual(
    backbone: Backbone,
    splits: Splits,
    trained: Sequence[Stage],
    config: ContinualConfig,
    previous: PreviousTask | None,
    execution: Execution,
) -> ContinualLearning:
    """Choose the replayed images, copy the previous head, and measure the Fisher information, as far as ``config`` needs them.

    Args:
        backbone: backbone with its starting weights. If its head has all previous classes, their rows are copied into it.
        splits: new images.
        trained: stages that train.
        config: weights of LwF and EWC, and source of the replayed images.
        previous: previous task. ``None`` if the starting weights have no head.
        execution: device, seed, batch size and progress.

    Raises:
        ConfigError: LwF or EWC is on, and the starting weights have no head.
        DataError: the images to replay cannot be used.
    """
    if not (config.lwf or config.ewc or config.replay):
        return ContinualLearning()
    if previous is None and (config.lwf or config.ewc):
        raise ConfigError(
            f"--lwf and --ewc need the linear head of the previous task, but the weights of {backbone.name} have none. "
            f"Use --l2sp or --replay."
        )
    replay: list[Sample] = []
    if config.replay:
        extract = features_of(backbone, execution.batch_size, device=execution.device, images=0)
        replay = choose_replayed(config, splits, previous, extract, progress=execution.progress)
        _log.info("replaying %d images of %s", len(replay), config.replay)
    if previous is not None:
        copy_previous_head(backbone, previous)
    fisher = _fisher(backbone, previous, splits, trained, execution) if previous is not None and config.ewc else {}
    return ContinualLearning(previous, fisher, tuple(replay))


def _fisher(
    backbone: Backbone, previous: PreviousTask, splits: Splits, trained: Sequence[Stage], execution: Execution
) -> dict[str, torch.Tensor]:
    """Measure the Fisher information of the trained weights on previous images, or on new images if the previous ones are missing."""
    model = copy.deepcopy(backbone.model)
    model.set_submodule(backbone.head_name, copy.deepcopy(previous.head))
    model.to(execution.device).eval().requires_grad_(True)
    names = {name for stage in trained for name in stage.parameters if stage.name != HEAD or previous.places is not None}
    samples = stratified(previous.samples("train") or splits.train, FISHER_IMAGES)
    earlier = previous.run.read_tensors(FISHER_NAME) if previous.run and FISHER_NAME in previous.run.record.files else {}
    # Position embeddings have another shape at another input size.
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    earlier = {name: value for name, value in earlier.items() if shapes.get(name) == value.shape}
    found = measure_fisher(model, _images(samples, backbone, execution), names, seed=execution.seed, earlier=earlier)
    return {name: _on_new_head(name, value.cpu(), backbone, previous) for name, value in found.items()}


def _images(samples: Sequence[Sample], backbone: Backbone, execution: Execution) -> Iterator[torch.Tensor]:
    for index, sample in enumerate(samples):
        yield torch.from_numpy(preprocess(sample.path, backbone.spec)).to(execution.device)
        execution.progress("measuring the Fisher information", index + 1, len(samples))


def _on_new_head(name: str, value: torch.Tensor, backbone: Backbone, previous: PreviousTask) -> torch.Tensor:
    """Move the values of the previous head to their rows in the new head. The rows of new classes are 0, so EWC does not hold them."""
    if not name.startswith(f"{backbone.head_name}.") or previous.places is None:
        return value
    whole = torch.zeros(backbone.model.get_parameter(name).shape)
    whole[list(previous.places)] = value
    return whole
