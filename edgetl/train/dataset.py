"""Training images for torch: the evaluation's preprocessing, or a random crop of the same picture, both normalised by the same code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode, v2

from edgetl.core.host import available_cores
from edgetl.core.images import load_image
from edgetl.core.preprocess import PreprocessSpec, normalise, to_pixels
from edgetl.data.folder import Sample
from edgetl.data.loading import Prepare
from edgetl.train.config import TrainConfig


class ImageDataset(Dataset[tuple[torch.Tensor, int]]):
    """Images as ``float32 [3, H, W]`` with their label.

    An index counts images through all epochs (``epoch * n + i``) and seeds the augmentation, so that a picture looks the same in
    the same epoch whatever the number of worker processes.
    """

    def __init__(self, samples: Sequence[Sample], spec: PreprocessSpec, *, augment: v2.Transform | None, seed: int) -> None:
        self.samples = samples
        self.spec = spec
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        sample = self.samples[index % len(self.samples)]
        image = load_image(sample.path)
        if self.augment is None:
            pixels = to_pixels(image, self.spec)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(draw_seed(self.seed, index))
                pixels = self.augment(image)
        out = np.empty((3, *self.spec.input_size), np.float32)
        normalise(pixels, self.spec, out)
        return torch.from_numpy(out), sample.label


def draw_seed(seed: int, index: int) -> int:
    """A seed for one picture or batch of a run: torch's generator of the CPU looks at the lowest 32 bits alone."""
    return (seed * 1_000_003 + index) % 2**32


def random_crop(seed: int, view: int) -> Prepare:
    """A function that makes one random crop of an image, the same for the same ``seed``, ``view`` and picture, in any thread.

    60 to 100 % of the area at an aspect ratio of 6:7 to 7:6, as torchvision's ``RandomResizedCrop`` draws them: large crops, because
    the frozen features of a small detail say little about the picture.
    """

    def prepare(sample: Sample, spec: PreprocessSpec) -> NDArray[np.float32]:
        image = load_image(sample.path)
        rng = np.random.default_rng([seed, view, int(sample.content[:15], 16)])
        area, ratio = rng.uniform(0.6, 1.0), math.exp(rng.uniform(-1, 1) * math.log(7 / 6))
        ratio *= spec.input_size[1] / spec.input_size[0]
        width = min(image.width, max(1, round(math.sqrt(area * image.width * image.height * ratio))))
        height = min(image.height, max(1, round(math.sqrt(area * image.width * image.height / ratio))))
        left, top = int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1))
        whole = spec.model_copy(update={"crop_mode": "squash", "crop_pct": 1.0})
        out = np.empty((3, *spec.input_size), np.float32)
        normalise(to_pixels(image.crop((left, top, left + width, top + height)), whole), spec, out)
        return out

    return prepare


class EpochSampler(Sampler[int]):
    """A seeded permutation for each epoch; yields indices that also tell the epoch."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        base, self.epoch = self.epoch * self.length, self.epoch + 1
        yield from (base + index for index in torch.randperm(self.length, generator=generator).tolist())


def light_augmentation(spec: PreprocessSpec, *, flip: bool) -> v2.Transform:
    """Random crops of at least 60 % of the picture, small changes of colour, and mirroring where it keeps the label."""
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(spec.input_size, scale=(0.6, 1.0), interpolation=InterpolationMode(_torchvision_filter(spec))),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ]
    return v2.Compose([*steps, v2.RandomHorizontalFlip()] if flip else steps)


def loaders(
    train: Sequence[Sample], val: Sequence[Sample], spec: PreprocessSpec, config: TrainConfig
) -> tuple[DataLoader[tuple[torch.Tensor, int]], DataLoader[tuple[torch.Tensor, int]]]:
    """Data loaders of the training and the validation images; a last batch of one image, which BatchNorm cannot take, is dropped."""
    augment = light_augmentation(spec, flip=config.flip) if config.augment == "light" else None
    workers = config.workers if config.workers is not None else default_workers()
    pin = torch.cuda.is_available() and config.device != "cpu"
    drop = len(train) % config.batch_size == 1 and len(train) > 1
    training = ImageDataset(train, spec, augment=augment, seed=config.seed)
    validation = ImageDataset(val, spec, augment=None, seed=config.seed)
    sampler = EpochSampler(len(train), config.seed)
    return (
        DataLoader(training, config.batch_size, sampler=sampler, num_workers=workers, pin_memory=pin, drop_last=drop),
        DataLoader(validation, config.batch_size, num_workers=workers, pin_memory=pin),
    )


def default_workers() -> int:
    """Loader processes: none where they would take the cores that train."""
    cores = available_cores()
    return 0 if cores <= 2 and not torch.cuda.is_available() else min(8, cores - 1)


def _torchvision_filter(spec: PreprocessSpec) -> str:
    return spec.interpolation if spec.interpolation in {item.value for item in InterpolationMode} else "bicubic"
