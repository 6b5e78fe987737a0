"""Previous task: the classes that the starting weights predict, and the measurement of forgetting."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

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
from edgetl.train.artifacts.loading.load import load_published
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import BackboneConfig
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.backbone import Backbone, feature_extractor, find_head
from edgetl.train.networks.progressive import ProgressiveNetwork

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreviousTask:
    """Task of the starting weights.

    Attributes:
        name: name of the run or the backbone.
        head: linear head of the previous task, in evaluation mode.
        places: new index of each previous class, if the new network has all previous classes. The new network's own outputs then predict
            the previous task. ``None`` if classes are missing: the features are then passed through ``head``.
        run: run that the weights come from. ``None`` for published weights.
    """

    name: str
    head: nn.Linear
    places: tuple[int, ...] | None
    run: Run | None

    def samples(self, part: Part) -> list[Sample]:
        """Return the images of one split of the previous task, with its labels. Empty if the images are missing."""
        if self.run is None:
            return []
        try:
            return self.run.samples(part)
        except DataError as error:
            _log.warning("%s", error)
            return []


class HeadInput:
    """Input of a network's head in the last forward pass, recorded by a hook. Use it in a ``with`` block, which removes the hook.

    Attributes:
        features: float ``[batch, width]``.
    """

    def __init__(self, network: nn.Module, head_name: str) -> None:
        self.head_name = head_name
        self.features = torch.empty(0)
        self._handle = network.get_submodule(head_name).register_forward_pre_hook(self._keep)

    def _keep(self, _head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.features = inputs[0]

    def __enter__(self) -> HeadInput:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._handle.remove()


def find_previous_task(config: BackboneConfig, backbone: Backbone, labels: Sequence[str]) -> PreviousTask | None:
    """Return the task of the weights that ``backbone`` starts from.

    Returns:
        The previous task. ``None`` for random weights, for a run on another task than classification, and for weights without a linear
        head on the last features.
    """
    if not backbone.parents or not config.pretrained:
        return None
    if is_run(config.name):
        run = open_run(config.name)
        if run.record.task != "classification":
            return None
        if not run.record.head.plain:
            _log.info("%s: forgetting is not measured, because its head (%s) is not linear", run.path, run.record.head.describe())
            return None
        head = run.load_model().get_submodule(run.record.backbone.head_name)
        assert isinstance(head, nn.Linear)
        contained = all(label in labels for label in run.record.labels)
        places = tuple(labels.index(label) for label in run.record.labels) if contained else None
        return PreviousTask(run.record.name, head.eval(), places, run)
    whole = load_published(config)
    if whole is None:
        return None
    layer = whole.get_submodule(find_head(whole))
    return PreviousTask(backbone.name, copy.deepcopy(layer).eval(), None, None) if isinstance(layer, nn.Linear) else None


def copy_previous_head(backbone: Backbone, previous: PreviousTask) -> None:
    """Copy the rows of the previous classes into the head of ``backbone``, if it has all previous classes."""
    if previous.places is None:
        return
    with torch.no_grad():
        backbone.head.weight[list(previous.places)] = previous.head.weight
        backbone.head.bias[list(previous.places)] = previous.head.bias


def measure_forgetting(backbone: Backbone, previous: PreviousTask, execution: Execution, seen: frozenset[int]) -> Forgetting | None:
    """Measure forgetting: the accuracy of the parent and of the trained network on test images of the previous task.

    Args:
        backbone: the trained network.
        previous: the previous task, with its run.
        execution: device, batch size and progress.
        seen: hash prefixes of images that trained or selected one of the two networks or an ancestor. They are excluded, because they
            would measure memorization.

    Returns:
        Both accuracies and their difference. ``None`` if no unseen test image is left.
    """
    assert previous.run is not None
    whole = previous.samples("test")
    samples = [sample for sample in whole if hash_prefix(sample.content) not in seen]
    if not samples:
        _log.info("forgetting of the task of %s is not measured: all of its %d test images were seen", previous.name, len(whole))
        return None
    labels = previous.run.record.labels
    own = previous.run.record.backbone
    # The parent may accept only its own input size.
    parent = dataclasses.replace(backbone, spec=previous.run.record.preprocess)
    before = _predictions(feature_extractor(previous.run.load_model(), own.head_name), previous.head, parent, samples, execution)
    network, head, through = _previous_predictor(backbone, previous)
    after = _predictions(network, head, backbone, samples, execution)
    return compare_predictions((previous.name, through), labels, labels_of(samples), before, after)


def compare_predictions(
    names: tuple[str, str], labels: Sequence[str], truth: NDArray[np.int64], before: NDArray[np.int64], after: NDArray[np.int64]
) -> Forgetting:
    """Compute the forgetting of a task from the predictions of its test images.

    Args:
        names: name of the parent, and output that predicts the previous classes (``Forgetting.through``).
        labels: class names of the previous task.
        truth: true classes, int64 ``[n]``.
        before: predictions of the parent, int64 ``[n]``.
        after: predictions of the new network, int64 ``[n]``.
    """
    drop = paired_drop(before == truth, after == truth)
    first, second = (float((found == truth).mean()) for found in (before, after))
    return Forgetting(
        parent=names[0],
        through=names[1],
        images=len(truth),
        before=first,
        after=second,
        drop=first - second,
        low=drop.low,
        high=drop.high,
        classes=tuple(_class_forgetting(label, truth == index, before == truth, after == truth) for index, label in enumerate(labels)),
    )


def _previous_predictor(backbone: Backbone, previous: PreviousTask) -> tuple[nn.Module, nn.Linear, str]:
    """Return the part of the trained network that predicts the previous task: feature extractor, head, and name in the record."""
    assert previous.run is not None
    own, model = previous.run.record.backbone, backbone.model
    if isinstance(model, ProgressiveNetwork) and len(model.columns) > len(own.columns.earlier if own.columns else ()) + 1:
        column = model.previous_network()
        head = column.get_submodule(own.head_name)
        assert isinstance(head, nn.Linear)
        return feature_extractor(column, own.head_name), head, "previous column"
    network = feature_extractor(model, backbone.head_name)
    return (
        (network, previous.head, "previous head")
        if previous.places is None
        else (network, _selected(backbone.head, previous.places), "own")
    )


def _selected(head: nn.Linear, places: tuple[int, ...]) -> nn.Linear:
    """Return a head with only the rows of the previous classes, so that no other class can be predicted."""
    chosen = nn.Linear(head.in_features, len(places))
    with torch.no_grad():
        chosen.weight.copy_(head.weight[list(places)])
        chosen.bias.copy_(head.bias[list(places)])
    return chosen


def _predictions(
    network: nn.Module, head: nn.Linear, backbone: Backbone, samples: Sequence[Sample], execution: Execution
) -> NDArray[np.int64]:
    extract = FrozenFeatures(network, backbone.spec, device=execution.device, batch_size=execution.batch_size, images=len(samples))
    features = extract(samples, progress=execution.progress)
    with torch.no_grad():
        predicted: NDArray[np.int64] = head.cpu()(torch.from_numpy(features)).argmax(dim=1).numpy()
    return predicted


def _class_forgetting(label: str, rows: NDArray[np.bool_], before: NDArray[np.bool_], after: NDArray[np.bool_]) -> ClassForgetting:
    """Return the forgetting of one class. ``rows`` selects its images; ``before`` and ``after`` mark correct predictions."""
    n = int(rows.sum())
    drop = paired_drop(before[rows], after[rows])
    first, second = (float(right[rows].mean()) if n else 0.0 for right in (before, after))
    return ClassForgetting(label=label, n=n, before=first, after=second, low=drop.low, high=drop.high)
