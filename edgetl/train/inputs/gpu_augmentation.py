"""Augmentation on the GPU: colors and normalization; the loader processes decode and crop, and pass bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torchvision.transforms import v2

from edgetl.core.preprocess import PreprocessSpec
from edgetl.train.inputs.dataset import Batches, TrainingImages, training_batches
from edgetl.train.inputs.samplers import BatchOptions, draw_seed

# Run in the loaders: cropping is cheap there, and bytes are a quarter of float32 pixels.
_SHAPING = (v2.RandomResizedCrop, v2.RandomHorizontalFlip)


def divide(augment: v2.Transform) -> tuple[v2.Transform, v2.Transform | None]:
    """Split an augmentation into the changes of shape, for the loaders, and those of color, for the device; none if there are none."""
    steps = list(augment.transforms) if isinstance(augment, v2.Compose) else [augment]
    shaping = [step for step in steps if isinstance(step, _SHAPING)]
    rest = [step for step in steps if not isinstance(step, _SHAPING)]
    return v2.Compose(shaping), v2.Compose(rest) if rest else None


class DeviceBatches:
    """Batches of uint8 images ``[batch, 3, H, W]`` and targets, as float32 images on ``device`` and targets.

    Colors are drawn for each image; those of a step depend on the seed and the step alone.
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
                with torch.random.fork_rng(devices=[]):  # the choices are drawn on the CPU, whatever the images are on
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
    """``training_batches`` with color augmentation and normalization on ``device`` (default: the current GPU)."""
    shaping, colors = divide(augment)
    loaded = training_batches(images, spec, shaping, options, steps=steps, as_bytes=True)
    device = device or torch.device("cuda", torch.cuda.current_device())
    return DeviceBatches(loaded, colors, spec, device=device, seed=options.seed, first=steps.start)
