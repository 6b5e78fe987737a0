"""Continual learning of one training: previous task, Fisher information and replayed images, and the loss terms that follow from them."""

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

# Enough for a stable diagonal; each takes one pass forward and one back.
FISHER_IMAGES = 200


@dataclass(frozen=True)
class ContinualLearning:
    """Prepared inputs of continual learning.

    Attributes:
        previous: the task of the starting weights, where a term needs it.
        fisher: weight by weight, the importance for it (EWC).
        replay: images that are mixed into the batches, labeled as in ``edgetl.train.continual.replay``.
    """

    previous: PreviousTask | None = None
    fisher: dict[str, torch.Tensor] = field(default_factory=dict)
    replay: tuple[Sample, ...] = ()

    @property
    def keeps_head(self) -> bool:
        """True if the network starts with the previous head and not with a fitted one."""
        return self.previous is not None and self.previous.places is not None and not self.replay

    def loss_terms(
        self, network: nn.Module, head_input: HeadInput, config: ContinualConfig, start: Mapping[str, torch.Tensor]
    ) -> dict[str, LossTerm]:
        """Loss terms by name: ``replay``, ``lwf`` and ``l2sp``, those that are on.

        Args:
            network: with its starting weights, on its device.
            head_input: input of its head.
            config: weights of the terms.
            start: starting weights of the layers that train, without the head's.
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
        """EWC, if it is on; ``network`` has its starting weights, and is on its device."""
        return [EWC(network, self.fisher, strength)] if self.fisher else []


def prepare_continual(
    backbone: Backbone,
    splits: Splits,
    trained: Sequence[Stage],
    config: ContinualConfig,
    previous: PreviousTask | None,
    execution: Execution,
) -> ContinualLearning:
    """Choose replayed images, copy the previous head, and measure the Fisher information, where ``config`` needs them.

    Args:
        backbone: with its starting weights; its head gets the previous classes' rows where it has all of them.
        splits: new images.
        trained: stages that train.
        config: weights of LwF and EWC, and source of replay.
        previous: the previous task, if there is one.
        execution: device, seed, batch size, progress.

    Raises:
        ConfigError: the weights came without a head.
        DataError: the images to replay cannot be used.
    """
    if not (config.lwf or config.ewc or config.replay):
        return ContinualLearning()
    if previous is None and (config.lwf or config.ewc):
        raise ConfigError(f"--lwf and --ewc need the previous linear head, and {backbone.name} came without one. Use --l2sp or --replay.")
    replay: list[Sample] = []
    if config.replay:
        extract = features_of(backbone, execution.batch_size, device=execution.device, images=0)
        replay = choose_replayed(config, splits, previous, extract, progress=execution.progress)
        _log.info("%d images of %s are replayed", len(replay), config.replay)
    if previous is not None:
        copy_previous_head(backbone, previous)
    fisher = _fisher(backbone, previous, splits, trained, execution) if previous is not None and config.ewc else {}
    return ContinualLearning(previous, fisher, tuple(replay))


def _fisher(
    backbone: Backbone, previous: PreviousTask, splits: Splits, trained: Sequence[Stage], execution: Execution
) -> dict[str, torch.Tensor]:
    """Of the weights that train, on the previous images, or on the new ones where the previous are missing."""
    model = copy.deepcopy(backbone.model)
    model.set_submodule(backbone.head_name, copy.deepcopy(previous.head))
    model.to(execution.device).eval().requires_grad_(True)
    names = {name for stage in trained for name in stage.parameters if stage.name != HEAD or previous.places is not None}
    samples = stratified(previous.samples("train") or splits.train, FISHER_IMAGES)
    earlier = previous.run.read_tensors(FISHER_NAME) if previous.run and FISHER_NAME in previous.run.record.files else {}
    # Tables of positions have another shape at another input size.
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    earlier = {name: value for name, value in earlier.items() if shapes.get(name) == value.shape}
    found = measure_fisher(model, _images(samples, backbone, execution), names, seed=execution.seed, earlier=earlier)
    return {name: _on_new_head(name, value.cpu(), backbone, previous) for name, value in found.items()}


def _images(samples: Sequence[Sample], backbone: Backbone, execution: Execution) -> Iterator[torch.Tensor]:
    for index, sample in enumerate(samples):
        yield torch.from_numpy(preprocess(sample.path, backbone.spec)).to(execution.device)
        execution.progress("measuring the Fisher information", index + 1, len(samples))


def _on_new_head(name: str, value: torch.Tensor, backbone: Backbone, previous: PreviousTask) -> torch.Tensor:
    """The previous head's rows at their places in the new one; new classes are free."""
    if not name.startswith(f"{backbone.head_name}.") or previous.places is None:
        return value
    whole = torch.zeros(backbone.model.get_parameter(name).shape)
    whole[list(previous.places)] = value
    return whole
