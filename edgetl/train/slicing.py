"""A narrower network of the same family, started from the channels of a wide one that vary most.

The scale of a BatchNorm tells how much a channel matters (Network Slimming: Liu et al. 2017, arXiv:1708.06519); channels that residual
connections join are chosen together. For timm's MobileNetV2 family: a stem, inverted residual blocks, a head convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgetl.errors import BackboneError

_BATCHNORM = ("weight", "bias", "running_mean", "running_var")


def slice_channels(wide: nn.Module, narrow: nn.Module) -> None:
    """Fill ``narrow`` in place with channels of ``wide``.

    Raises:
        BackboneError: the two are not of the same family and depth.
    """
    cut = _Cut(wide.state_dict(), narrow.state_dict())
    try:
        kept = cut.batchnorm("bn1")
        cut.convolution("conv_stem", kept, None)
        stages: Any = narrow.blocks
        for index, stage in enumerate(stages):
            kept = _slice_stage(cut, f"blocks.{index}", len(stage), kept)
        kept_head = cut.batchnorm("bn2")
        cut.convolution("conv_head", kept_head, kept)
        narrow.load_state_dict(cut.narrow)
    except (KeyError, AttributeError, RuntimeError) as error:
        raise BackboneError(f"{type(narrow).__name__} cannot be started from channels of {type(wide).__name__}: {error}.") from error


def _slice_stage(cut: _Cut, stage: str, depth: int, kept: torch.Tensor) -> torch.Tensor:
    """Slice the blocks of one stage, which share their output channels, and return those."""
    plain = f"{stage}.0.conv_pwl.weight" not in cut.wide  # the first stage: depthwise, then pointwise
    last, norm = ("conv_pw", "bn2") if plain else ("conv_pwl", "bn3")
    energy = torch.stack([cut.wide[f"{stage}.{block}.{norm}.weight"] ** 2 for block in range(depth)]).sum(dim=0)
    joined = cut.largest(energy, cut.narrow[f"{stage}.0.{last}.weight"].shape[0])
    for block in range(depth):
        name = f"{stage}.{block}"
        inner = kept
        if not plain:
            inner = cut.batchnorm(f"{name}.bn1", rank_by=f"{name}.bn2")
            cut.convolution(f"{name}.conv_pw", inner, kept)
        cut.convolution(f"{name}.conv_dw", inner, None)
        cut.batchnorm(f"{name}.{'bn1' if plain else 'bn2'}", inner)
        cut.convolution(f"{name}.{last}", joined, inner)
        cut.batchnorm(f"{name}.{norm}", joined)
        kept = joined
    return kept


class _Cut:
    """The two networks' tensors while channels are copied."""

    def __init__(self, wide: dict[str, torch.Tensor], narrow: dict[str, torch.Tensor]) -> None:
        self.wide = wide
        self.narrow = narrow

    @staticmethod
    def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
        """Indices of the ``count`` largest, ascending."""
        return scores.abs().topk(count).indices.sort().values

    def batchnorm(self, name: str, kept: torch.Tensor | None = None, *, rank_by: str | None = None) -> torch.Tensor:
        """Copy a BatchNorm's channels, by default those with the largest scale, and return which."""
        if kept is None:
            kept = self.largest(self.wide[f"{rank_by or name}.weight"], len(self.narrow[f"{name}.weight"]))
        for part in _BATCHNORM:
            self.narrow[f"{name}.{part}"] = self.wide[f"{name}.{part}"][kept].clone()
        return kept

    def convolution(self, name: str, outputs: torch.Tensor, inputs: torch.Tensor | None) -> None:
        """Copy a kernel; fewer inputs are scaled up, so that the sums keep about their spread."""
        kernel = self.wide[f"{name}.weight"][outputs]
        if inputs is not None:
            kernel = kernel[:, inputs] * (self.wide[f"{name}.weight"].shape[1] / len(inputs)) ** 0.5
        self.narrow[f"{name}.weight"] = kernel.clone()
