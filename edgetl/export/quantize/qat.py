"""Quantization-aware training: a bounded number of steps on the run's own images, towards the trained model's answers.

Rounding is simulated in the forward pass and ignored in the backward one (Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018,
arXiv:1712.05877): weights per output channel, symmetric; the inputs of convolutions and linear layers per tensor, with ranges measured
on the calibration images. BatchNorm stays as it is: folding it scales each output channel, which per-channel rounding does not see.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrize

from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import Task
from edgetl.data.loading import PixelSet

RATE = 1e-4
BATCH = 32
_LAYERS = (nn.Conv2d, nn.Linear)


def tune_for_int8(
    model: nn.Module, images: PixelSet, calibration: Sequence[NDArray[np.float32]], task: Task, steps: int, *,
    bits: int = 8, seed: int = 0, progress: Progress = silent,
) -> nn.Module:  # fmt: skip
    """A copy of ``model`` whose float weights lose less when they are quantized.

    Args:
        model: the trained one, in evaluation mode; it is also the teacher.
        images: training images.
        calibration: batches float32 ``[n, 3, H, W]`` that ranges are measured on.
        task: how answers are compared.
        steps: of ``BATCH`` images.
        bits: of weights and activations.
        seed: of the images' order.
        progress: told after each step.
    """
    student = copy.deepcopy(model).eval()
    student.requires_grad_(True)
    handles = simulate(student, calibration, bits)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0)
    with torch.no_grad():
        spread = float(torch.cat([model(torch.from_numpy(batch)) for batch in calibration]).var().clamp_min(1e-6))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, batch in zip(range(steps), _shuffled(images, seed), strict=False):
        with torch.no_grad():
            wanted = model(batch)
        loss = _distance(student(batch), wanted, task, spread)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress("quantization-aware training", step + 1, steps)
    for handle in handles:
        handle.remove()
    for module in student.modules():
        if isinstance(module, _LAYERS):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    return student.requires_grad_(False)


def simulate(model: nn.Module, calibration: Sequence[NDArray[np.float32]], bits: int) -> list[torch.utils.hooks.RemovableHandle]:
    """Round the weights and inputs of every convolution and linear layer of ``model``; the hooks that do it for the inputs."""
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, _LAYERS)]
    limits = _ranges(model, layers, calibration)
    handles = []
    for module, (low, high) in zip(layers, limits, strict=True):
        parametrize.register_parametrization(module, "weight", _RoundedWeight(bits))
        handles.append(module.register_forward_pre_hook(_RoundedInput(low, high, bits)))
    return handles


class _RoundedWeight(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.most = 2 ** (bits - 1) - 1

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        scale = weight.detach().abs().flatten(1).amax(dim=1).clamp_min(1e-12) / self.most
        zero = torch.zeros(len(scale), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -self.most, self.most)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


class _RoundedInput:
    """A forward hook; 0 is always exact, which padding needs."""

    def __init__(self, low: float, high: float, bits: int) -> None:
        low, high = min(low, 0.0), max(high, 0.0)
        self.most = 2**bits - 1
        self.scale = max(high - low, 1e-12) / self.most
        self.zero = round(-low / self.scale)

    def __call__(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (torch.fake_quantize_per_tensor_affine(inputs[0], self.scale, self.zero, 0, self.most), *inputs[1:])


def _ranges(model: nn.Module, layers: list[nn.Module], calibration: Sequence[NDArray[np.float32]]) -> list[tuple[float, float]]:
    """The least and largest input of each layer."""
    found = dict.fromkeys(layers, (0.0, 0.0))

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        low, high = found[module]
        found[module] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    with torch.inference_mode():
        for batch in calibration:
            model(torch.from_numpy(batch))
    for handle in handles:
        handle.remove()
    return [found[layer] for layer in layers]


def _shuffled(images: PixelSet, seed: int) -> Iterator[torch.Tensor]:
    """Batches of ``BATCH`` images, in another order each pass, without end."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(order), BATCH):
            yield torch.from_numpy(images.rows(order[start : start + BATCH]))


def _distance(found: torch.Tensor, wanted: torch.Tensor, task: Task, spread: float) -> torch.Tensor:
    """``spread`` is the variance of the trained model's numbers."""
    if task == "classification":
        return F.kl_div(found.log_softmax(dim=1), wanted.log_softmax(dim=1), log_target=True, reduction="batchmean")
    if task == "multi-label":
        return F.binary_cross_entropy_with_logits(found, wanted.sigmoid())
    return F.mse_loss(found, wanted) / spread
