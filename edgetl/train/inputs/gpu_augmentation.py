"""Colours varied, and pixels normalised, on the GPU that trains: the loader processes decode and crop, and hand over bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torchvision.transforms import v2

from edgetl.core.preprocess import PreprocessSpec
from edgetl.data.folder import Sample
from edgetl.train.config.options import TrainConfig
from edgetl.train.inputs.dataset import draw_seed, training_batches

# What must see the decoded image: cropping is cheap where it is, and a quarter of the bytes of float32 pixels travel.
_SHAPING = (v2.RandomResizedCrop, v2.RandomHorizontalFlip)


def divide(augment: v2.Transform) -> tuple[v2.Transform, v2.Transform | None]:
    """What an augmentation does to an image's shape, for the loaders, and what it does to its colours, for the device, if anything."""
    steps = list(augment.transforms) if isinstance(augment, v2.Compose) else [augment]
    shaping = [step for step in steps if isinstance(step, _SHAPING)]
    rest = [step for step in steps if not isinstance(step, _SHAPING)]
    return v2.Compose(shaping), v2.Compose(rest) if rest else None


class DeviceBatches:
    """Batches of uint8 images ``[batch, 3, H, W]`` and targets, as float32 images on ``device`` and targets.

    Each image gets colours of its own; a step's depend on the seed and the step alone, as its images do.
    """

    def __init__(
        self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], colours: v2.Transform | None, spec: PreprocessSpec, *,
        device: torch.device, seed: int, first: int,
    ) -> None:  # fmt: skip
        self.batches = batches
        self.colours = colours
        self.device = device
        self.seed = seed
        self.first = first
        self.mean, self.std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (spec.mean, spec.std))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step, (images, targets) in enumerate(self.batches, self.first):
            on_device = images.to(self.device, non_blocking=True)
            if self.colours is not None:
                with torch.random.fork_rng(devices=[]):  # the choices are drawn on the CPU, whatever the images are on
                    torch.manual_seed(draw_seed(self.seed, step))
                    on_device = torch.stack([self.colours(image) for image in on_device])
            yield (on_device.float() / 255 - self.mean) / self.std, targets.to(self.device, non_blocking=True)


def batches_on(
    device: torch.device, augment: v2.Transform, samples: Sequence[Sample], spec: PreprocessSpec, config: TrainConfig, *,
    steps: range, replay: Sequence[Sample] = (),
) -> DeviceBatches:  # fmt: skip
    """``training_batches`` whose colours and normalisation are made on ``device``."""
    shaping, colours = divide(augment)
    loaded = training_batches(samples, spec, shaping, config, steps=steps, replay=replay, as_bytes=True)
    return DeviceBatches(loaded, colours, spec, device=device, seed=config.run.seed, first=steps.start)
