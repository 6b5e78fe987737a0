"""What a training is to protect, gathered before it begins: the old task, what mattered to it, and images to show again."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from edgetl.core.preprocess import preprocess
from edgetl.data.folder import Sample
from edgetl.data.loading import stratified
from edgetl.data.split import Splits
from edgetl.errors import ConfigError
from edgetl.train.artifacts.record import FISHER_NAME
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan
from edgetl.train.continual.ewc import measure_fisher
from edgetl.train.continual.previous_task import OldTask, find_old_task, keep_old_answers
from edgetl.train.continual.replay import replayed
from edgetl.train.inputs.activation_cache import Workplace
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.networks.backbone import Backbone, feature_extractor
from edgetl.train.networks.stages import HEAD, choose_stages, find_stages

_log = logging.getLogger(__name__)

# Enough for a stable diagonal; each takes one pass forward and one back.
FISHER_IMAGES = 200


@dataclass(frozen=True)
class Protection:
    """For one training.

    Attributes:
        old: the task of the starting weights, where a guard needs it.
        fisher: how much each weight mattered to it (``--ewc``).
        replay: images that are shown again, labelled as ``edgetl.train.continual.replay`` says.
        keeps_head: the network starts with the old head and not with a fitted one.
    """

    old: OldTask | None = None
    fisher: dict[str, torch.Tensor] = field(default_factory=dict)
    replay: tuple[Sample, ...] = ()
    keeps_head: bool = False


def protect(backbone: Backbone, splits: Splits, plan: Plan, config: TrainConfig, place: Workplace) -> Protection:
    """Gather what ``config.lwf``, ``config.ewc`` and ``config.replay`` need; nothing where none is asked for.

    Raises:
        ConfigError: there is nothing to protect: random weights, or weights without a head.
        DataError: the images to replay cannot be used.
    """
    asked = [f"--{name}" for name in ("lwf", "ewc", "replay") if getattr(config.continual, name)]
    if not asked:
        return Protection()
    if plan.strategy == "probe":
        _log.info("%s: not needed, a probe leaves the trunk as it is", " and ".join(asked))
        return Protection()
    old = find_old_task(config, backbone, splits.folder.labels)
    if old is None and (config.continual.lwf or config.continual.ewc):
        raise ConfigError(
            f"--lwf and --ewc ask what the old linear head answers, and {config.backbone.name} came without one. Use --l2sp or --replay."
        )
    replay: Sequence[Sample] = ()
    if config.continual.replay:
        trunk = feature_extractor(backbone.model, backbone.head_name)
        extract = FrozenFeatures(trunk, backbone.spec, device=place.device, batch_size=config.optim.batch_size)
        known = {sample.content for sample in (*splits.train, *splits.val, *splits.test)}
        replay = replayed(config, splits.folder.labels, old, extract, known, progress=place.progress)
        _log.info("%d images of %s are shown again", len(replay), config.continual.replay)
    if old is not None:
        keep_old_answers(backbone, old)
    fisher = _fisher(backbone, old, splits, plan, config, place) if old is not None and config.continual.ewc else {}
    keeps = old is not None and old.places is not None and not replay
    return Protection(old, fisher, tuple(replay), keeps)


def _fisher(backbone: Backbone, old: OldTask, splits: Splits, plan: Plan, config: TrainConfig, place: Workplace) -> dict[str, torch.Tensor]:
    """Of the weights that will learn, on the old images, or on the new ones where the old are gone."""
    model = copy.deepcopy(backbone.model)
    model.set_submodule(backbone.head_name, copy.deepcopy(old.head))
    model.to(place.device).eval().requires_grad_(True)
    trained = choose_stages(find_stages(backbone.model, backbone.head_name), plan.unfreeze)
    names = {name for stage in trained for name in stage.parameters if stage.name != HEAD or old.places is not None}
    samples = stratified(old.samples("train") or splits.train, FISHER_IMAGES)
    earlier = old.run.read_tensors(FISHER_NAME) if old.run and FISHER_NAME in old.run.record.files else {}
    # Tables of positions have another shape at another input size.
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    earlier = {name: value for name, value in earlier.items() if shapes.get(name) == value.shape}
    found = measure_fisher(model, _images(samples, backbone, place), names, seed=config.run.seed, earlier=earlier)
    return {name: _on_new_head(name, value.cpu(), backbone, old) for name, value in found.items()}


def _images(samples: Sequence[Sample], backbone: Backbone, place: Workplace) -> Iterator[torch.Tensor]:
    for index, sample in enumerate(samples):
        yield torch.from_numpy(preprocess(sample.path, backbone.spec)).to(place.device)
        place.progress("measuring what mattered", index + 1, len(samples))


def _on_new_head(name: str, value: torch.Tensor, backbone: Backbone, old: OldTask) -> torch.Tensor:
    """The old head's rows at the places that they have in the new one; new classes are free."""
    if not name.startswith(f"{backbone.head_name}.") or old.places is None:
        return value
    whole = torch.zeros(backbone.model.get_parameter(name).shape)
    whole[list(old.places)] = value
    return whole
