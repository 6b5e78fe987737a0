"""Networks side by side, one for each task: those that came before are frozen whole, and the last one learns and listens to them.

Progressive networks (Rusu et al. 2016, arXiv:1606.04671). Nothing of an earlier column ever changes, so that nothing is forgotten; the
price is a network more for each task.
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


class Border(StrictModel):
    """A place where a column's stage ends and later columns listen.

    Attributes:
        port: the module whose output it is, by its name in every column.
        channels: of that output.
        layout: ``map`` is ``[batch, channels, h, w]``; ``rows`` has the channels last: ``[batch, …, channels]``.
    """

    port: str
    channels: int = Field(ge=1, le=65_536)
    layout: Literal["map", "rows"]


class Column(StrictModel):
    """An earlier column of a network.

    Attributes:
        name: of the run that trained it, or of the published weights.
        classes: outputs of its head.
        labels: of those, in their order; empty for published weights, which do not name them.
        borders: where it listens to the columns before it; empty for the first one.
    """

    name: str
    classes: int = Field(ge=1, le=100_000)
    labels: tuple[str, ...] = ()
    borders: tuple[Border, ...] = ()


class ColumnsRecord(StrictModel):
    """How ``Columns`` is put together again.

    Attributes:
        head: the linear head's name in each column.
        earlier: the frozen columns, the oldest first.
        borders: where the last column, the run's own, listens to them.
    """

    head: str
    earlier: tuple[Column, ...] = Field(min_length=1, max_length=32)
    borders: tuple[Border, ...]

    @property
    def all_borders(self) -> tuple[tuple[Border, ...], ...]:
        """Of each column but the first."""
        return (*(column.borders for column in self.earlier[1:]), self.borders)


class Columns(nn.Module):
    """Networks of one architecture; at each border a column adds to its own output what it makes of the earlier columns' outputs there.

    Called, it answers for the last column: ``float32 [batch, 3, H, W]`` → logits ``[batch, classes]``. A lateral connection is a matrix
    over the channels (a 1x1 convolution, or a linear layer) that starts at zero, so that a new column begins as what it is a copy of.
    The borders are listened to by hooks that last as long as one call; two threads must not call one network at the same time.

    Args:
        columns: the oldest first; all but the last are frozen here, parameters and statistics.
        borders: of each column but the first.
        head_name: the linear head's name in each column.
    """

    def __init__(self, columns: Sequence[nn.Module], borders: Sequence[Sequence[Border]], head_name: str) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)
        self.borders = tuple(tuple(found) for found in borders)
        self.head_name = head_name
        # laterals.A.B.C: into column A + 1, at its B-th border, from column C.
        self.laterals = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(_lateral(border) for _ in range(place)) for border in found)
            for place, found in enumerate(self.borders, start=1)
        )
        for frozen in (*self.columns[:-1], *self.laterals[:-1]):
            frozen.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Columns:
        """As ``nn.Module.train``, but the frozen columns stay in evaluation mode: their statistics must not move."""
        super().train(mode)
        for frozen in self.columns[:-1]:
            frozen.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of the last column's task."""
        return self.answers(images, len(self.columns) - 1)

    def answers(self, images: torch.Tensor, place: int) -> torch.Tensor:
        """What the column at ``place`` answers, bit for bit as before there were later ones.

        Args:
            images: float32 ``[batch, 3, H, W]``.
            place: 0 is the oldest column.

        Returns:
            Logits ``[batch, classes]`` of that column's task.
        """
        seen: list[dict[str, torch.Tensor]] = []
        for index in range(place):
            heard: dict[str, torch.Tensor] = {}
            self._ask(index, images, seen, heard)
            seen.append(heard)
        return self._ask(place, images, seen, None)

    def old_answers(self, images: torch.Tensor) -> torch.Tensor:
        """What the network answered before its last column came: logits ``[batch, classes]`` of that task."""
        return self.answers(images, len(self.columns) - 2)

    def earlier(self) -> nn.Module:
        """The network as it was before its last column came; it shares the weights."""
        if len(self.columns) == 2:
            return self.columns[0]
        shared = Columns([*self.columns[:-1]], self.borders[:-1], self.head_name)
        shared.laterals = nn.ModuleList(self.laterals[:-1])
        return shared.eval().requires_grad_(False)

    def get_classifier(self) -> nn.Module:
        """The last column's head, as timm's networks tell theirs."""
        return self.columns[-1].get_submodule(self.head_name)

    def _ask(
        self, place: int, images: torch.Tensor, seen: list[dict[str, torch.Tensor]], heard: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:
        """One column's answer, given the outputs of the columns before it at each port; its own go into ``heard`` where later ones ask."""
        column, laterals = self.columns[place], self._into(place)
        handles: list[RemovableHandle] = []

        def listener(port: str) -> Any:
            def listen(_module: nn.Module, _given: Any, out: torch.Tensor) -> torch.Tensor:
                for lateral, earlier in zip(laterals.get(port, ()), seen, strict=False):
                    out = out + lateral(earlier[port])
                if heard is not None:
                    heard[port] = out.clone()  # the next layer may work in place
                return out

            return listen

        try:
            ports = laterals if heard is None else dict.fromkeys(border.port for found in self.borders for border in found)
            handles.extend(column.get_submodule(port).register_forward_hook(listener(port)) for port in ports)
            logits: torch.Tensor = column(images)
        finally:
            for handle in handles:
                handle.remove()
        return logits

    def _into(self, place: int) -> dict[str, list[nn.Module]]:
        """The lateral connections into a column, by their port."""
        if place == 0:
            return {}
        rows = [list(row.children()) for row in self.laterals[place - 1].children()]
        return {border.port: row for border, row in zip(self.borders[place - 1], rows, strict=True)}


def check_ports(network: nn.Module, record: ColumnsRecord) -> None:
    """Refuse a record that names modules which a column does not have.

    Raises:
        BackboneError: a module is missing; the text names it.
    """
    modules = dict(network.named_modules())
    wanted = {border.port for found in (*(column.borders for column in record.earlier), record.borders) for border in found}
    missing = sorted(name for name in wanted if name not in modules)
    if missing or not isinstance(modules.get(record.head), nn.Linear):
        raise BackboneError(
            f"the columns' record names {missing[0] if missing else record.head!r}, which {type(network).__name__} does not have."
        )


def _lateral(border: Border) -> nn.Module:
    """A matrix over the channels, all zero."""
    if border.layout == "map":
        layer: nn.Conv2d | nn.Linear = nn.Conv2d(border.channels, border.channels, 1, bias=False)
    else:
        layer = nn.Linear(border.channels, border.channels, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def newest(model: nn.Module) -> tuple[str, nn.Module]:
    """The network that learns, and how its parameters' names begin in ``model``: the last column, or ``model`` itself."""
    if isinstance(model, Columns):
        return f"columns.{len(model.columns) - 1}.", model.columns[-1]
    return "", model
