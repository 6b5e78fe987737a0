"""GPU augmentation: color changes and normalization on the GPU. Loader processes decode and crop, and pass uint8 images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torchvision.transforms import v2

from edgetl.core.preprocess import PreprocessSpec
from edgetl.train.inputs.dataset import Batches, TrainingImages, training_batches
from edgetl.train.inputs.samplers import BatchOptions, draw_seed

# Geometric transforms run in the loader processes. They are cheap there, and uint8 images need a quarter of the memory of float32.
_GEOMETRIC = (v2.RandomResizedCrop, v2.RandomHorizontalFlip)


def divide(augment: v2.Transform) -> tuple[v2.Transform, v2.Transform | None]:
    """Split an augmentation into geometric transforms for the loader processes, and color transforms for the device.

    The second one is None if there are no color transforms.
    """
    steps = list(augment.transforms) if isinstance(augment, v2.Compose) else [augment]
    geometric = [step for step in steps if isinstance(step, _GEOMETRIC)]
    rest = [step for step in steps if not isinstance(step, _GEOMETRIC)]
    return v2.Compose(geometric), v2.Compose(rest) if rest else None


class DeviceBatches:
    """Batches of normalized float32 images ``[batch, 3, H, W]`` on ``device``, made from batches of uint8 images.

    Color changes are drawn for each image. They depend on the seed and the step only.
    """

    def __init__(
        self, batches: Batches, colors: v2.Transform | None, spec: PreprocessSpec, *, device: torch.device, seed: int, first: int
    ) -> None:
        self.batches = batches
        self.colors = colors
        self.device = device
        self.seed = seed
        self.first = first
        self.mean, self.std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (spec.mean, spec.std))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step, (images, targets) in enumerate(self.batches, self.first):
            on_device = images.to(self.device, non_blocking=True)
            if self.colors is not None:
                with torch.random.fork_rng(devices=[]):  # torchvision draws the parameters on the CPU, for images on any device
                    torch.manual_seed(draw_seed(self.seed, step))
                    on_device = torch.stack([self.colors(image) for image in on_device])
            yield (on_device.float() / 255 - self.mean) / self.std, targets.to(self.device, non_blocking=True)


def gpu_batches(
    images: TrainingImages,
    spec: PreprocessSpec,
    augment: v2.Transform,
    options: BatchOptions,
    *,
    steps: range,
    device: torch.device | None = None,
) -> DeviceBatches:
    """Load training batches, with color augmentation and normalization on ``device`` (default: the current GPU)."""
    geometric, colors = divide(augment)
    loaded = training_batches(images, spec, geometric, options, steps=steps, as_bytes=True)
    device = device or torch.device("cuda", torch.cuda.current_device())
    return DeviceBatches(loaded, colors, spec, device=device, seed=options.seed, first=steps.start)
