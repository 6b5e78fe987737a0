"""What the starting weights could do before: the classes of a run, or of the weights as they were published."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.bundle import hash_prefix, is_run
from edgetl.core.metrics import paired_drop
from edgetl.core.results import ClassForgetting, Forgetting
from edgetl.data.folder import Part, Sample
from edgetl.data.loading import labels_of
from edgetl.errors import DataError
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.sources.load import load_published
from edgetl.train.config.options import TrainConfig
from edgetl.train.inputs.activation_cache import Workplace
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.networks.backbone import Backbone, feature_extractor, find_head
from edgetl.train.networks.progressive import ProgressiveNetwork

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OldTask:
    """A task that the starting weights know.

    Attributes:
        name: of the run, or of the backbone.
        head: its linear layer, in evaluation mode.
        places: where the new network has all of the old classes: the new index of each. Such a network answers the old task by itself;
            any other answers it through ``head`` on its new trunk.
        run: none for published weights.
    """

    name: str
    head: nn.Linear
    places: tuple[int, ...] | None
    run: Run | None

    def samples(self, part: Part) -> list[Sample]:
        """Images of the old task, with old labels; none where they are not at hand any more."""
        if self.run is None:
            return []
        try:
            return self.run.samples(part)
        except DataError as error:
            _log.warning("%s", error)
            return []


def find_old_task(config: TrainConfig, backbone: Backbone, labels: Sequence[str]) -> OldTask | None:
    """The task of the weights that ``backbone`` starts from; none for random weights, and for weights that came
    without a head, or with another one than a linear layer on the last features."""
    if not backbone.parents or not config.backbone.pretrained:
        return None
    if is_run(config.backbone.name):
        run = open_run(config.backbone.name)
        if run.record.task != "classification":
            return None
        if not run.record.head.plain:
            _log.info(
                "%s: its head (%s) does not fit a new trunk, and what its task loses is not known", run.path, run.record.head.describe()
            )
            return None
        old = run.load_model().get_submodule(run.record.backbone.head_name)
        assert isinstance(old, nn.Linear)
        known = all(label in labels for label in run.record.labels)
        places = tuple(labels.index(label) for label in run.record.labels) if known else None
        return OldTask(run.record.name, old.eval(), places, run)
    whole = load_published(config.backbone)
    if whole is None:
        return None
    head = whole.get_submodule(find_head(whole))
    return OldTask(backbone.name, copy.deepcopy(head).eval(), None, None) if isinstance(head, nn.Linear) else None


def keep_old_answers(backbone: Backbone, old: OldTask) -> None:
    """Start a network that has the old classes with the head that knows them, in place of a new one."""
    if old.places is None:
        return
    with torch.no_grad():
        backbone.head.weight[list(old.places)] = old.head.weight
        backbone.head.bias[list(old.places)] = old.head.bias


def measure_forgetting(backbone: Backbone, old: OldTask, place: Workplace, seen: frozenset[int], *, batch_size: int) -> Forgetting | None:
    """Accuracy of the parent and of the trained network on test images of the previous task; none where no such image is left.

    ``seen`` are the images on which one of the two, or an ancestor, was trained or selected. They are left out, because they would measure
    memory.
    """
    assert old.run is not None
    whole = old.samples("test")
    samples = [sample for sample in whole if hash_prefix(sample.content) not in seen]
    if not samples:
        _log.info("forgetting of the task of %s is not measured: none of its %d test images is unseen", old.name, len(whole))
        return None
    labels = old.run.record.labels
    own = old.run.record.backbone
    # The parent runs at its own input size, which may be the only one that it takes.
    parent = dataclasses.replace(backbone, spec=old.run.record.preprocess)
    before = _answers(feature_extractor(old.run.load_model(), own.head_name), old.head, parent, samples, place, batch_size)
    trunk, head, through = _asked(backbone, old)
    after = _answers(trunk, head, backbone, samples, place, batch_size)
    truth = labels_of(samples)
    drop = paired_drop(before == truth, after == truth)
    first, second = (float((found == truth).mean()) for found in (before, after))
    return Forgetting(
        parent=old.name,
        through=through,
        images=len(samples),
        before=first,
        after=second,
        drop=first - second,
        low=drop.low,
        high=drop.high,
        classes=tuple(_of_class(label, truth == index, before == truth, after == truth) for index, label in enumerate(labels)),
    )


def _asked(backbone: Backbone, old: OldTask) -> tuple[nn.Module, nn.Linear, str]:
    """What answers the old questions in the trained network: trunk and head, and how the record calls them."""
    assert old.run is not None
    own, model = old.run.record.backbone, backbone.model
    if isinstance(model, ProgressiveNetwork) and len(model.columns) > len(own.columns.earlier if own.columns else ()) + 1:
        column = model.previous_network()
        head = column.get_submodule(own.head_name)
        assert isinstance(head, nn.Linear)
        return feature_extractor(column, own.head_name), head, "old column"
    trunk = feature_extractor(model, backbone.head_name)
    return (trunk, old.head, "old head") if old.places is None else (trunk, _selected(backbone.head, old.places), "own")


def _selected(head: nn.Linear, places: tuple[int, ...]) -> nn.Linear:
    """The rows of ``head`` that stand for the old classes, in their old order: the question is asked among the old classes alone."""
    chosen = nn.Linear(head.in_features, len(places))
    with torch.no_grad():
        chosen.weight.copy_(head.weight[list(places)])
        chosen.bias.copy_(head.bias[list(places)])
    return chosen


def _answers(
    trunk: nn.Module, head: nn.Linear, backbone: Backbone, samples: Sequence[Sample], place: Workplace, batch_size: int
) -> NDArray[np.int64]:
    extract = FrozenFeatures(trunk, backbone.spec, device=place.device, batch_size=batch_size, images=len(samples))
    features = extract(samples, progress=place.progress)
    with torch.no_grad():
        predicted: NDArray[np.int64] = head.cpu()(torch.from_numpy(features)).argmax(dim=1).numpy()
    return predicted


def _of_class(label: str, rows: NDArray[np.bool_], before: NDArray[np.bool_], after: NDArray[np.bool_]) -> ClassForgetting:
    """Forgetting of a previous class with the images ``rows``; ``before`` and ``after`` are true where each network is right."""
    n = int(rows.sum())
    drop = paired_drop(before[rows], after[rows])
    first, second = (float(right[rows].mean()) if n else 0.0 for right in (before, after))
    return ClassForgetting(label=label, n=n, before=first, after=second, low=drop.low, high=drop.high)
