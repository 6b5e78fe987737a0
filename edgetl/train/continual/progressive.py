"""Progressive networks (``--forgetting progressive``): the previous network becomes a frozen column, and a copy of it trains beside it."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgetl.core.bundle import is_run
from edgetl.errors import ConfigError
from edgetl.train.artifacts.loading.load import load_published
from edgetl.train.artifacts.run import open_run
from edgetl.train.config.options import BackboneConfig
from edgetl.train.networks.backbone import Backbone, find_head, rebuild
from edgetl.train.networks.input_size import input_size_problem
from edgetl.train.networks.progressive import Column, Lateral, ProgressiveNetwork, ProgressiveRecord, last_column
from edgetl.train.networks.stages import Stage, choose_stages, find_stages

_log = logging.getLogger(__name__)

OPTION = "--forgetting progressive"


def add_column(backbone: Backbone, unfreeze: str, config: BackboneConfig) -> Backbone:
    """``backbone`` as a new column beside the network that its weights come from.

    The new column starts as a copy of the last one, its connections to the columns before that one included, and its connections to that
    one at zero: at first it gives the same features, bit for bit. It is connected where its trained stages begin and end.

    Raises:
        ConfigError: the weights came without a head, so that there is no previous network to keep; or the stages of this one have no
            outputs that could be connected.
    """
    found = _previous_network(config, backbone)
    if found is None:
        raise ConfigError(f"{OPTION} keeps the previous network with its head, and {config.name} came without one. Use --l2sp or --replay.")
    previous, earlier = found
    prefix, new = last_column(backbone.model)
    head = backbone.head_name.removeprefix(prefix)
    # The connections of the copied column come first.
    laterals = tuple(dict.fromkeys((*earlier[-1].laterals, *find_laterals(new, head, unfreeze, backbone.spec.input_size))))
    if not laterals:
        raise ConfigError(f"{OPTION}: the stages of {backbone.architecture} give no maps or rows of features. Choose another backbone.")
    record = ProgressiveRecord(head=head, earlier=earlier, laterals=laterals)
    columns = list(previous.columns) if isinstance(previous, ProgressiveNetwork) else [previous]
    model = ProgressiveNetwork([*columns, new], record.all_laterals, head).eval()
    if isinstance(previous, ProgressiveNetwork):
        _take_laterals(model, previous)
    names = " and ".join(column.name for column in earlier)
    _log.info("%s: %s unchanged, and a new column with connections at %d places", OPTION, names, len(laterals))
    return dataclasses.replace(backbone, model=model, head_name=f"{last_column(model)[0]}{head}", columns=record)


def _previous_network(config: BackboneConfig, backbone: Backbone) -> tuple[nn.Module, tuple[Column, ...]] | None:
    """The network that the weights come from, its own head included, and its columns; none where the weights came without a head."""
    if is_run(config.name):
        run = open_run(config.name)
        if not run.record.head.plain:
            raise ConfigError(f"{OPTION} keeps networks that end in a linear head, and {config.name} has another. Leave it out.")
        before, labels = run.record.backbone.columns, run.record.labels
        own = Column(name=run.record.name, classes=len(labels), labels=labels, laterals=before.laterals if before else ())
        return _at_size(run.load_model(), backbone), (*before.earlier, own) if before else (own,)
    whole = load_published(config)
    if whole is None:
        return None
    layer = _at_size(whole, backbone).get_submodule(find_head(whole))
    assert isinstance(layer, nn.Linear)
    # Built as a run is opened, so that what is written can be read.
    previous = rebuild(backbone.architecture, dict(backbone.model_args), layer.out_features)
    previous.load_state_dict(whole.state_dict())
    return previous, (Column(name=backbone.name, classes=layer.out_features),)


def _at_size(previous: nn.Module, backbone: Backbone) -> nn.Module:
    """Return ``previous`` unchanged if it takes the image size of the new column."""
    if reason := input_size_problem(previous, backbone.spec.input_size):
        raise ConfigError(
            f"{OPTION} keeps the previous network as it is, and it does not take images of --input-size: {reason}. Leave --input-size out."
        )
    return previous


def _take_laterals(model: ProgressiveNetwork, previous: ProgressiveNetwork) -> None:
    """Give the frozen columns their connections back, and the new one those of the column that it is a copy of."""
    for place, laterals in enumerate(previous.laterals):
        model.laterals[place].load_state_dict(laterals.state_dict())
    # The copied column's connections. Those to that column itself keep their zeros.
    model.laterals[-1].load_state_dict(previous.laterals[-1].state_dict(), strict=False)


def find_laterals(model: nn.Module, head_name: str, unfreeze: str, size: tuple[int, int]) -> tuple[Lateral, ...]:
    """Lateral connections of a new column: at the ends of the stages that train, and of the one before them.

    A stage ends with the last module, run once, all of whose parameters are the stage's. Below the first trained stage the columns are the
    same, and nothing has to be learned or to go back there.

    Args:
        model: one column.
        head_name: its linear head.
        unfreeze: stages that train, as in the plan.
        size: height and width of the input, px.
    """
    *lower, _ = stages = find_stages(model, head_name)
    first = max(0, stages.index(choose_stages(stages, unfreeze)[0]) - 1)
    ended = _run(model, size)
    found = (_lateral(model, stage, ended) for stage in lower[first:])
    return tuple(place for place in found if place is not None)


def _run(model: nn.Module, size: tuple[int, int]) -> list[tuple[str, torch.Size]]:
    """Modules in the order in which they end, with the shape of their output; those that run once and give one tensor."""
    ended: list[tuple[str, torch.Size | None]] = []

    def end(path: str) -> Any:
        return lambda _module, _given, out: ended.append((path, out.shape if isinstance(out, torch.Tensor) else None))

    watched = copy.deepcopy(model).eval()
    for path, module in watched.named_modules():
        if path:
            module.register_forward_hook(end(path))
    with torch.no_grad():
        watched(torch.zeros(2, 3, *size))
    paths = [path for path, _ in ended]
    return [(path, shape) for path, shape in ended if shape is not None and paths.count(path) == 1]


def _lateral(model: nn.Module, stage: Stage, ended: Sequence[tuple[str, torch.Size]]) -> Lateral | None:
    own = set(stage.parameters)
    for path, shape in reversed(ended):
        module = model.get_submodule(path)
        inside = {f"{path}.{name}" for name, _ in module.named_parameters()}
        if not inside or inside - own:
            continue
        # Norms and biases are as long as there are channels; where height and channels are equal, timm's networks state which comes first.
        widths = {parameter.shape[0] for parameter in module.parameters() if parameter.ndim == 1}
        last = shape[-1] in widths and len(shape) > 1
        if len(shape) == 4 and shape[1] in widths and not (last and getattr(model, "output_fmt", "NCHW") == "NHWC"):
            return Lateral(module=path, channels=shape[1], layout="map")
        return Lateral(module=path, channels=shape[-1], layout="rows") if last else None
    return None
