"""Progressive networks (Rusu et al. 2016, arXiv:1606.04671): frozen columns, one for each earlier task, and a column that trains.

Each column adds projections of the earlier columns' activations to its own (lateral connections). Earlier columns never change, so that
their tasks are kept exactly. The model grows by one network for each task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.utils.hooks import RemovableHandle

from edgetl.core.config import StrictModel
from edgetl.errors import BackboneError


class Lateral(StrictModel):
    """Place of a lateral connection: the end of a stage, by its module in every column.

    Attributes:
        module: name of the module whose output is connected.
        channels: of that output.
        layout: ``map`` is ``[batch, channels, h, w]``; ``rows`` has the channels last: ``[batch, …, channels]``.
    """

    module: str
    channels: int = Field(ge=1, le=65_536)
    layout: Literal["map", "rows"]


class Column(StrictModel):
    """An earlier column.

    Attributes:
        name: of the run that trained it, or of the published weights.
        classes: outputs of its head.
        labels: of those, in their order; empty for published weights, which do not name them.
        laterals: connections from the columns before it; empty for the first column.
    """

    name: str
    classes: int = Field(ge=1, le=100_000)
    labels: tuple[str, ...] = ()
    laterals: tuple[Lateral, ...] = ()


class ProgressiveRecord(StrictModel):
    """Structure of a ``ProgressiveNetwork``.

    Attributes:
        head: the linear head's name in each column.
        earlier: the frozen columns, the oldest first.
        laterals: connections from them to the last column, the run's own.
    """

    head: str
    earlier: tuple[Column, ...] = Field(min_length=1, max_length=32)
    laterals: tuple[Lateral, ...]

    @property
    def all_laterals(self) -> tuple[tuple[Lateral, ...], ...]:
        """Lateral connections of each column but the first."""
        return (*(column.laterals for column in self.earlier[1:]), self.laterals)


class ProgressiveNetwork(nn.Module):
    """Columns of one architecture with lateral connections: ``float32 [batch, 3, H, W]`` → logits ``[batch, classes]`` of the last one.

    A lateral connection is a matrix over the channels (a 1x1 convolution, or a linear layer). It starts at zero, so that a new column
    starts as the network that it is a copy of. Hooks that exist during one call apply the connections: two threads must not call one
    network at the same time.

    Args:
        columns: the oldest first; all but the last are frozen here, parameters and statistics.
        places: lateral connections of each column but the first.
        head_name: the linear head's name in each column.
    """

    def __init__(self, columns: Sequence[nn.Module], places: Sequence[Sequence[Lateral]], head_name: str) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)
        self.places = tuple(tuple(found) for found in places)
        self.head_name = head_name
        # laterals.A.B.C: into column A + 1, at its B-th place, from column C.
        self.laterals = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(_projection(place) for _ in range(column)) for place in found)
            for column, found in enumerate(self.places, start=1)
        )
        for frozen in (*self.columns[:-1], *self.laterals[:-1]):
            frozen.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ProgressiveNetwork:
        """As ``nn.Module.train``, but the frozen columns stay in evaluation mode: their statistics must not move."""
        super().train(mode)
        for frozen in self.columns[:-1]:
            frozen.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of the last column's task."""
        return self.column_logits(images, len(self.columns) - 1)

    def column_logits(self, images: torch.Tensor, index: int) -> torch.Tensor:
        """Logits ``[batch, classes]`` of the column at ``index`` (0 is the oldest), bit for bit as before there were later columns."""
        outputs: list[dict[str, torch.Tensor]] = []
        for earlier in range(index):
            own: dict[str, torch.Tensor] = {}
            self._run_column(earlier, images, outputs, own)
            outputs.append(own)
        return self._run_column(index, images, outputs, None)

    def previous_network(self) -> nn.Module:
        """The network without its last column; it shares the weights."""
        if len(self.columns) == 2:
            return self.columns[0]
        shared = ProgressiveNetwork([*self.columns[:-1]], self.places[:-1], self.head_name)
        shared.laterals = nn.ModuleList(self.laterals[:-1])
        return shared.eval().requires_grad_(False)

    def get_classifier(self) -> nn.Module:
        """The last column's head, by the name of timm's method."""
        return self.columns[-1].get_submodule(self.head_name)

    def _run_column(
        self, index: int, images: torch.Tensor, outputs: list[dict[str, torch.Tensor]], own: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:
        """Logits of one column, given the earlier columns' outputs by module; ``own`` takes its outputs for later columns."""
        column, laterals = self.columns[index], self._laterals_into(index)
        handles: list[RemovableHandle] = []

        def hook_of(name: str) -> Any:
            def hook(_module: nn.Module, _inputs: Any, out: torch.Tensor) -> torch.Tensor:
                for lateral, earlier in zip(laterals.get(name, ()), outputs, strict=False):
                    out = out + lateral(earlier[name])
                if own is not None:
                    own[name] = out.clone()  # the next layer may work in place
                return out

            return hook

        try:
            names = laterals if own is None else dict.fromkeys(place.module for found in self.places for place in found)
            handles.extend(column.get_submodule(name).register_forward_hook(hook_of(name)) for name in names)
            logits: torch.Tensor = column(images)
        finally:
            for handle in handles:
                handle.remove()
        return logits

    def _laterals_into(self, index: int) -> dict[str, list[nn.Module]]:
        """The lateral connections into a column, by module."""
        if index == 0:
            return {}
        rows = [list(row.children()) for row in self.laterals[index - 1].children()]
        return {place.module: row for place, row in zip(self.places[index - 1], rows, strict=True)}


def check_laterals(network: nn.Module, record: ProgressiveRecord) -> None:
    """Refuse a record that names modules which a column does not have.

    Raises:
        BackboneError: a module is missing; the text names it.
    """
    modules = dict(network.named_modules())
    wanted = {place.module for found in (*(column.laterals for column in record.earlier), record.laterals) for place in found}
    missing = sorted(name for name in wanted if name not in modules)
    if missing or not isinstance(modules.get(record.head), nn.Linear):
        raise BackboneError(
            f"the columns' record names {missing[0] if missing else record.head!r}, which {type(network).__name__} does not have."
        )


def _projection(place: Lateral) -> nn.Module:
    """A matrix over the channels, all zero."""
    if place.layout == "map":
        layer: nn.Conv2d | nn.Linear = nn.Conv2d(place.channels, place.channels, 1, bias=False)
    else:
        layer = nn.Linear(place.channels, place.channels, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def last_column(model: nn.Module) -> tuple[str, nn.Module]:
    """The network that trains, and the prefix of its parameters' names in ``model``: the last column, or ``model`` itself."""
    if isinstance(model, ProgressiveNetwork):
        return f"columns.{len(model.columns) - 1}.", model.columns[-1]
    return "", model
