"""Progressive networks (``--forgetting progressive``): keep the previous network as a frozen column and train a copy beside it."""

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
    """Add ``backbone`` as a new column beside the network that its weights come from.

    The new column starts as a copy of the last column, including that column's lateral connections. The connections to the last column
    start at zero. The new column therefore computes the same features at first, bit for bit. Lateral connections are placed where the
    trained stages begin and end.

    Args:
        backbone: backbone with its starting weights.
        unfreeze: stages that train, as in the plan.
        config: options that name the backbone.

    Raises:
        ConfigError: the weights have no linear head, the previous network does not accept the input size, or the stages have no outputs
            that can be connected.
    """
    found = _previous_network(config, backbone)
    if found is None:
        raise ConfigError(
            f"{OPTION} needs the head of the previous network, but the weights of {config.name} have none. Use --l2sp or --replay."
        )
    previous, earlier = found
    prefix, new = last_column(backbone.model)
    head = backbone.head_name.removeprefix(prefix)
    # The connections of the copied column come first.
    laterals = tuple(dict.fromkeys((*earlier[-1].laterals, *find_laterals(new, head, unfreeze, backbone.spec.input_size))))
    if not laterals:
        raise ConfigError(
            f"{OPTION}: the stages of {backbone.architecture} have no feature maps or token features to connect. Choose another backbone."
        )
    record = ProgressiveRecord(head=head, earlier=earlier, laterals=laterals)
    columns = list(previous.columns) if isinstance(previous, ProgressiveNetwork) else [previous]
    model = ProgressiveNetwork([*columns, new], record.all_laterals, head).eval()
    if isinstance(previous, ProgressiveNetwork):
        _copy_laterals(model, previous)
    names = " and ".join(column.name for column in earlier)
    _log.info("%s: %s frozen, new column with %d lateral connections", OPTION, names, len(laterals))
    return dataclasses.replace(backbone, model=model, head_name=f"{last_column(model)[0]}{head}", columns=record)


def _previous_network(config: BackboneConfig, backbone: Backbone) -> tuple[nn.Module, tuple[Column, ...]] | None:
    """Return the network that the weights come from, with its head, and its columns. ``None`` if the weights have no head."""
    if is_run(config.name):
        run = open_run(config.name)
        if not run.record.head.plain:
            raise ConfigError(f"{OPTION} needs a network with a linear head, but {config.name} has another head. Remove the option.")
        before, labels = run.record.backbone.columns, run.record.labels
        own = Column(name=run.record.name, classes=len(labels), labels=labels, laterals=before.laterals if before else ())
        return _check_input_size(run.load_model(), backbone), (*before.earlier, own) if before else (own,)
    whole = load_published(config)
    if whole is None:
        return None
    layer = _check_input_size(whole, backbone).get_submodule(find_head(whole))
    assert isinstance(layer, nn.Linear)
    # Built in the same way as when a run is opened, so that the written run can be read again.
    previous = rebuild(backbone.architecture, dict(backbone.model_args), layer.out_features)
    previous.load_state_dict(whole.state_dict())
    return previous, (Column(name=backbone.name, classes=layer.out_features),)


def _check_input_size(previous: nn.Module, backbone: Backbone) -> nn.Module:
    """Return ``previous`` unchanged if it accepts the image size of the new column."""
    if reason := input_size_problem(previous, backbone.spec.input_size):
        raise ConfigError(
            f"{OPTION} keeps the previous network unchanged, but this network does not accept images of --input-size: {reason}. "
            f"Remove --input-size."
        )
    return previous


def _copy_laterals(model: ProgressiveNetwork, previous: ProgressiveNetwork) -> None:
    """Copy the lateral connections of the frozen columns. The new column gets a copy of the last column's connections."""
    for place, laterals in enumerate(previous.laterals):
        model.laterals[place].load_state_dict(laterals.state_dict())
    # strict=False, because the new column also has connections to the copied column, which keep their zeros.
    model.laterals[-1].load_state_dict(previous.laterals[-1].state_dict(), strict=False)


def find_laterals(model: nn.Module, head_name: str, unfreeze: str, size: tuple[int, int]) -> tuple[Lateral, ...]:
    """Return the lateral connections of a new column: at the ends of the trained stages and of the stage before them.

    The end of a stage is its last module that runs once and has only parameters of the stage. Below the first trained stage the columns
    are equal, so connections there would have nothing to learn.

    Args:
        model: one column.
        head_name: name of its linear head.
        unfreeze: stages that train, as in the plan.
        size: height and width of the input, px.
    """
    *lower, _ = stages = find_stages(model, head_name)
    first = max(0, stages.index(choose_stages(stages, unfreeze)[0]) - 1)
    ended = _trace(model, size)
    found = (_lateral(model, stage, ended) for stage in lower[first:])
    return tuple(place for place in found if place is not None)


def _trace(model: nn.Module, size: tuple[int, int]) -> list[tuple[str, torch.Size]]:
    """Return the modules that run once and return one tensor, in the order in which they end, with the shape of their output."""
    ended: list[tuple[str, torch.Size | None]] = []

    def end(path: str) -> Any:
        return lambda _module, _given, out: ended.append((path, out.shape if isinstance(out, torch.Tensor) else None))

    traced = copy.deepcopy(model).eval()
    for path, module in traced.named_modules():
        if path:
            module.register_forward_hook(end(path))
    with torch.no_grad():
        traced(torch.zeros(2, 3, *size))
    paths = [path for path, _ in ended]
    return [(path, shape) for path, shape in ended if shape is not None and paths.count(path) == 1]


def _lateral(model: nn.Module, stage: Stage, ended: Sequence[tuple[str, torch.Size]]) -> Lateral | None:
    own = set(stage.parameters)
    for path, shape in reversed(ended):
        module = model.get_submodule(path)
        inside = {f"{path}.{name}" for name, _ in module.named_parameters()}
        if not inside or inside - own:
            continue
        # Normalization weights and biases have one value per channel. If height and channels are equal, output_fmt decides.
        widths = {parameter.shape[0] for parameter in module.parameters() if parameter.ndim == 1}
        last = shape[-1] in widths and len(shape) > 1
        if len(shape) == 4 and shape[1] in widths and not (last and getattr(model, "output_fmt", "NCHW") == "NHWC"):
            return Lateral(module=path, channels=shape[1], layout="map")
        return Lateral(module=path, channels=shape[-1], layout="rows") if last else None
    return None
