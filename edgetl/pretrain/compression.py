"""Compression of a wide network into a narrower network of the same family, as the start of a distillation.

Supports timm's MobileNetV2 family: a stem, stages of inverted residual blocks, and a head convolution.

1. Block outputs are linear, so the channels of a stage can be expressed in any basis. The narrow network uses their leading principal
   components (as in SliceGPT for transformers: Ashkboos et al. 2024, arXiv:2401.15024).
2. Inside a block, the hidden channels that together explain most of the output are kept (forward selection by orthogonal least squares:
   Chen, Billings and Luo 1989).
3. The projection after them is fitted by least squares to the wide network's output (channel pruning: He et al. 2017,
   arXiv:1707.06168). Its inputs are those of the narrow network, so each block corrects part of the error of the previous blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.errors import BackboneError

# Number of positions of the feature maps in one fit.
ROWS = 40_000
# Ridge strength relative to the mean square of the inputs. It prevents large weights on nearly constant channels.
RIDGE = 1e-3
# A channel is not selected if the selected channels already explain all but this fraction of its variance.
LEAST_LEFT = 1e-6


@dataclass(frozen=True)
class Coordinates:
    """Basis of a narrow stage: its channels are ``(wide - mean) @ basis`` of the wide stage's channels.

    Attributes:
        mean: mean of the wide stage's channels, float32 ``[wide channels]``.
        basis: float32 ``[wide channels, narrow channels]``, with orthonormal columns.
    """

    mean: torch.Tensor
    basis: torch.Tensor

    def of(self, maps: torch.Tensor) -> torch.Tensor:
        """Convert feature maps from ``[n, wide, h, w]`` to ``[n, narrow, h, w]``."""
        return torch.einsum("nchw,cd->ndhw", maps - self.mean[:, None, None], self.basis)


def stage_maps(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Return the feature maps ``[n, channels, h, w]`` of each stage of a MobileNetV2, and those of its head convolution as the last."""
    net: Any = network
    maps = [net.bn1(net.conv_stem(images))]
    for stage in net.blocks:
        maps.append(stage(maps[-1]))
    return [*maps[1:], net.bn2(net.conv_head(maps[-1]))]


@torch.no_grad()
def compress(wide: nn.Module, narrow: nn.Module, images: torch.Tensor) -> list[Coordinates]:
    """Set the weights of ``narrow`` in place to approximate ``wide``.

    Args:
        wide: network in evaluation mode, with the same padding as ``narrow``.
        narrow: network of the same family and depth.
        images: some hundred preprocessed images, float32 ``[n, 3, H, W]``.

    Returns:
        Coordinates of each stage.

    Raises:
        BackboneError: the networks do not have the same family and depth.
    """
    try:
        return _compress(wide, narrow.eval(), images)
    except (KeyError, AttributeError, RuntimeError, IndexError, TypeError, ValueError) as error:
        raise BackboneError(
            f"{type(wide).__name__} cannot be compressed into {type(narrow).__name__}: {error}. Both must be MobileNetV2 of the same depth."
        ) from error


def _compress(wide: Any, narrow: Any, images: torch.Tensor) -> list[Coordinates]:
    rows = _Rows()
    stem = wide.bn1(wide.conv_stem(images))
    outputs = _block_outputs(wide, stem)
    coordinates = [_principal(stage, next(iter(thin)), rows) for stage, thin in zip(outputs, narrow.blocks, strict=True)]
    state = _first_stage(wide, narrow, images, stem, coordinates[0].of(outputs[0][0]), rows)
    entering = coordinates[0]
    for index in range(1, len(narrow.blocks)):
        inside = coordinates[index]
        for wide_block, thin_block, output in zip(wide.blocks[index], narrow.blocks[index], outputs[index], strict=True):
            state = _inverted_residual(wide_block, thin_block, state, entering, inside.of(output), rows)
            entering = inside
    kernel, bias = _fit(*rows.of(state, wide.conv_head(outputs[-1][-1])))
    narrow.conv_head.weight.copy_(kernel[:, :, None, None])
    scale, shift = _affine(wide.bn2)
    _set_norm(narrow.bn2, narrow.conv_head(state), scale, shift + scale * bias)
    return coordinates


def _block_outputs(wide: Any, state: torch.Tensor) -> list[list[torch.Tensor]]:
    outputs: list[list[torch.Tensor]] = []
    for stage in wide.blocks:
        outputs.append([])
        for block in stage:
            state = block(state)
            outputs[-1].append(state)
    return outputs


def _principal(outputs: list[torch.Tensor], thin: Any, rows: _Rows) -> Coordinates:
    """Return the leading principal components of a stage's channels over the outputs of all its blocks.

    The blocks share a basis, because residual connections join them.
    """
    values = torch.cat([rows.of(output)[0] for output in outputs])
    mean = values.mean(dim=0)
    _, directions = torch.linalg.eigh((values - mean).T @ (values - mean))
    width = _projection(thin)[0].weight.shape[0]
    return Coordinates(mean.float(), directions[:, -width:].flip(1).float())


def _projection(block: Any) -> tuple[Any, Any]:
    """Return the last convolution of a block and its BatchNorm."""
    return (block.conv_pwl, block.bn3) if hasattr(block, "conv_pwl") else (block.conv_pw, block.bn2)


def _first_stage(wide: Any, narrow: Any, images: torch.Tensor, stem: torch.Tensor, wanted: torch.Tensor, rows: _Rows) -> torch.Tensor:
    """Compress the stem and the first stage (depthwise, then pointwise), which share their hidden channels."""
    thick, thin = wide.blocks[0][0], narrow.blocks[0][0]
    hidden, target = rows.of(thick.bn1(thick.conv_dw(stem)), wanted)
    kept = _select(hidden, target, thin.conv_dw.weight.shape[0])
    narrow.conv_stem.weight.copy_(wide.conv_stem.weight[kept])
    state = _set_norm(narrow.bn1, narrow.conv_stem(images), *(part[kept] for part in _affine(wide.bn1)))
    thin.conv_dw.weight.copy_(thick.conv_dw.weight[kept])
    state = _set_norm(thin.bn1, thin.conv_dw(state), *(part[kept] for part in _affine(thick.bn1)))
    return _project(thin, state, *_fit(hidden[:, kept], target))


def _inverted_residual(
    thick: Any, thin: Any, state: torch.Tensor, entering: Coordinates, wanted: torch.Tensor, rows: _Rows
) -> torch.Tensor:
    """Compress an inverted residual block (expand, depthwise, project), and return its output with the residual connection, if any."""
    expand = torch.einsum("hcxy,cd->hdxy", thick.conv_pw.weight, entering.basis)
    scale, shift = _affine(thick.bn1)
    shift = shift + scale * (thick.conv_pw.weight[:, :, 0, 0] @ entering.mean)
    expanded = F.conv2d(state, expand)
    active = (expanded * scale[:, None, None] + shift[:, None, None]).clamp(0, 6)
    spread = F.conv2d(active, thick.conv_dw.weight, stride=thick.conv_dw.stride, padding=thin.conv_dw.padding, groups=len(expand))
    scale_2, shift_2 = _affine(thick.bn2)
    hidden, target = rows.of(
        (spread * scale_2[:, None, None] + shift_2[:, None, None]).clamp(0, 6), wanted - state if thin.has_skip else wanted
    )
    kept = _select(hidden, target, thin.conv_dw.weight.shape[0])
    thin.conv_pw.weight.copy_(expand[kept])
    _set_norm(thin.bn1, expanded[:, kept], scale[kept], shift[kept])
    thin.conv_dw.weight.copy_(thick.conv_dw.weight[kept])
    inner = _set_norm(thin.bn2, spread[:, kept], scale_2[kept], shift_2[kept])
    output = _project(thin, inner, *_fit(hidden[:, kept], target))
    return output + state if thin.has_skip else output


def _project(thin: Any, hidden: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    convolution, norm = _projection(thin)
    convolution.weight.copy_(kernel[:, :, None, None])
    return _set_norm(norm, convolution(hidden), torch.ones_like(bias), bias)


def _affine(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``scale`` and ``shift`` of a BatchNorm, which computes ``scale * x + shift`` in evaluation mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _set_norm(norm: Any, inputs: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Make ``norm`` compute ``scale * x + shift`` in evaluation mode, and return its output.

    Its statistics are those of ``inputs``. The network therefore computes the same function in training mode.
    """
    mean, variance = inputs.mean(dim=(0, 2, 3)), inputs.var(dim=(0, 2, 3))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(scale * torch.sqrt(variance + norm.eps))
    norm.bias.copy_(shift + scale * mean)
    output: torch.Tensor = norm(inputs.clone())  # cloned, because its activation is in place
    return output


def _select(inputs: torch.Tensor, targets: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ascending indices of ``count`` columns that explain ``targets`` best, by greedy forward selection."""
    inputs, targets = inputs - inputs.mean(dim=0), targets - targets.mean(dim=0)
    gram, cross = inputs.T @ inputs, inputs.T @ targets
    first = gram.diagonal().clone()
    free = torch.ones(len(gram), dtype=torch.bool)
    for _ in range(count):
        left = gram.diagonal()
        gain = (cross**2).sum(dim=1) / left.clamp(min=torch.finfo(left.dtype).tiny)
        gain[~free] = -2.0
        gain[free & (left <= LEAST_LEFT * first)] = -1.0
        best = int(gain.argmax())
        free[best] = False
        pivot = gram[best, best].clamp(min=torch.finfo(left.dtype).tiny)
        if gain[best] > 0:
            column, reached = gram[:, best].clone(), cross[best].clone()
            cross = cross - torch.outer(column, reached) / pivot
            gram = gram - torch.outer(column, column) / pivot
    return (~free).nonzero().flatten()


def _fit(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a ridge regression with an intercept, and return its kernel, float32 ``[outputs, inputs]``, and bias ``[outputs]``."""
    mean, wanted = inputs.mean(dim=0), targets.mean(dim=0)
    gram = (inputs - mean).T @ (inputs - mean)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    kernel = torch.linalg.solve(gram, (inputs - mean).T @ (targets - wanted))
    return kernel.T.float(), (wanted - mean @ kernel).float()


class _Rows:
    """Sampler of the positions in a fit, with a fixed seed."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def of(self, *maps: torch.Tensor) -> list[torch.Tensor]:
        """Return float64 ``[rows, channels]`` for each tensor ``[n, channels, h, w]``, at the same sampled positions."""
        count = maps[0].shape[0] * maps[0].shape[2] * maps[0].shape[3]
        chosen = torch.randperm(count, generator=self._generator)[:ROWS]
        return [item.permute(0, 2, 3, 1).reshape(count, -1)[chosen].double() for item in maps]
