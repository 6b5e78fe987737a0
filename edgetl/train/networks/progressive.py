"""Progressive networks (Rusu et al. 2016, arXiv:1606.04671): one frozen column for each previous task, and one trained column.

Each column adds projections of the earlier columns' activations to its own activations (lateral connections). Earlier columns do not
change, and their predictions are kept exactly. Each task adds a whole network to the model.
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
    """Position of a lateral connection: the end of a stage in every column.

    Attributes:
        module: Name of the module with the connected output.
        channels: Number of channels of this output.
        layout: ``map`` is ``[batch, channels, h, w]``. ``rows`` has the channels last: ``[batch, …, channels]``.
    """

    module: str
    channels: int = Field(ge=1, le=65_536)
    layout: Literal["map", "rows"]


class Column(StrictModel):
    """Earlier column of a progressive network.

    Attributes:
        name: Name of the run that trained it, or of the published weights.
        classes: Number of outputs of its head.
        labels: Labels of these outputs, in their order. Empty for published weights, which have no labels.
        laterals: Lateral connections from the columns before it. Empty for the first column.
    """

    name: str
    classes: int = Field(ge=1, le=100_000)
    labels: tuple[str, ...] = ()
    laterals: tuple[Lateral, ...] = ()


class ProgressiveRecord(StrictModel):
    """Structure of a ``ProgressiveNetwork``, as recorded in ``run.json``.

    Attributes:
        head: Name of the linear head in each column.
        earlier: Frozen columns, the oldest first.
        laterals: Lateral connections from the frozen columns to the last column.
    """

    head: str
    earlier: tuple[Column, ...] = Field(min_length=1, max_length=32)
    laterals: tuple[Lateral, ...]

    @property
    def all_laterals(self) -> tuple[tuple[Lateral, ...], ...]:
        """Lateral connections of each column except the first."""
        return (*(column.laterals for column in self.earlier[1:]), self.laterals)


class ProgressiveNetwork(nn.Module):
    """Progressive network: columns with lateral connections. ``float32 [batch, 3, H, W]`` → logits ``[batch, classes]`` of the last column.

    All columns have the same architecture. A lateral connection is a matrix over the channels (a 1x1 convolution or a linear layer). It
    starts at zero, and a new column therefore starts with the predictions of the network that it was copied from.

    Forward hooks apply the connections during a call. Two threads must not call the same network at the same time.

    Args:
        columns: Columns, the oldest first. Parameters and statistics of all columns except the last are frozen.
        places: Lateral connections of each column except the first.
        head_name: Name of the linear head in each column.
    """

    def __init__(self, columns: Sequence[nn.Module], places: Sequence[Sequence[Lateral]], head_name: str) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)
        self.places = tuple(tuple(found) for found in places)
        self.head_name = head_name
        # laterals.A.B.C is the connection from column C to column A + 1 at its position B.
        self.laterals = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(_projection(place) for _ in range(column)) for place in found)
            for column, found in enumerate(self.places, start=1)
        )
        for frozen in (*self.columns[:-1], *self.laterals[:-1]):
            frozen.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ProgressiveNetwork:
        """Set the training mode, as ``nn.Module.train``. Frozen columns are kept in evaluation mode to keep their statistics."""
        super().train(mode)
        for frozen in self.columns[:-1]:
            frozen.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits ``[batch, classes]`` of the last column."""
        return self.column_logits(images, len(self.columns) - 1)

    def column_logits(self, images: torch.Tensor, index: int) -> torch.Tensor:
        """Compute the logits ``[batch, classes]`` of the column ``index`` (0 is the oldest).

        They are bit-identical to the logits before later columns were added.
        """
        outputs: list[dict[str, torch.Tensor]] = []
        for earlier in range(index):
            own: dict[str, torch.Tensor] = {}
            self._run_column(earlier, images, outputs, own)
            outputs.append(own)
        return self._run_column(index, images, outputs, None)

    def previous_network(self) -> nn.Module:
        """Return the network without its last column. The weights are shared."""
        if len(self.columns) == 2:
            return self.columns[0]
        shared = ProgressiveNetwork([*self.columns[:-1]], self.places[:-1], self.head_name)
        shared.laterals = nn.ModuleList(self.laterals[:-1])
        return shared.eval().requires_grad_(False)

    def get_classifier(self) -> nn.Module:
        """Return the head of the last column. The method has the same name in timm."""
        return self.columns[-1].get_submodule(self.head_name)

    def _run_column(
        self, index: int, images: torch.Tensor, outputs: list[dict[str, torch.Tensor]], own: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:
        """Compute the logits of one column.

        Args:
            index: Index of the column.
            images: float32 ``[batch, 3, H, W]``.
            outputs: Outputs of the earlier columns by module.
            own: Dictionary that receives the outputs of this column for later columns, or None.
        """
        column, laterals = self.columns[index], self._laterals_into(index)
        handles: list[RemovableHandle] = []

        def hook_of(name: str) -> Any:
            def hook(_module: nn.Module, _inputs: Any, out: torch.Tensor) -> torch.Tensor:
                for lateral, earlier in zip(laterals.get(name, ()), outputs, strict=False):
                    out = out + lateral(earlier[name])
                if own is not None:
                    own[name] = out.clone()  # the next layer may change it in place
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
        """Return the lateral connections to a column, by module."""
        if index == 0:
            return {}
        rows = [list(row.children()) for row in self.laterals[index - 1].children()]
        return {place.module: row for place, row in zip(self.places[index - 1], rows, strict=True)}


def check_laterals(network: nn.Module, record: ProgressiveRecord) -> None:
    """Check that a column has all modules of the record of a progressive network.

    Raises:
        BackboneError: If a module is missing.
    """
    modules = dict(network.named_modules())
    connected = {place.module for found in (*(column.laterals for column in record.earlier), record.laterals) for place in found}
    missing = sorted(name for name in connected if name not in modules)
    if missing or not isinstance(modules.get(record.head), nn.Linear):
        raise BackboneError(
            f"the record of the progressive network is invalid: {type(network).__name__} has no module "
            f"{missing[0] if missing else record.head!r}."
        )


def _projection(place: Lateral) -> nn.Module:
    """Make a lateral connection with zero weights."""
    if place.layout == "map":
        layer: nn.Conv2d | nn.Linear = nn.Conv2d(place.channels, place.channels, 1, bias=False)
    else:
        layer = nn.Linear(place.channels, place.channels, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def last_column(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the prefix of parameter names and the module of the trained column. For other networks: ``""`` and ``model``."""
    if isinstance(model, ProgressiveNetwork):
        return f"columns.{len(model.columns) - 1}.", model.columns[-1]
    return "", model
