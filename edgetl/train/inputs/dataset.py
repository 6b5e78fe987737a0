"""Image data set for torch: evaluation preprocessing or augmentation, normalized by the same code."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from edgetl.core.images.decode import load_image
from edgetl.core.preprocess import PreprocessSpec, normalize, to_pixels
from edgetl.core.system.host import available_cores
from edgetl.data.folder import Sample
from edgetl.data.loading import Prepare, Target, target_of
from edgetl.train.inputs.samplers import BatchOptions, draw_seed, make_sampler
from edgetl.train.networks.backbone import Backbone

Batches: TypeAlias = Iterable[tuple[torch.Tensor, torch.Tensor]]

# Validation images up to this size are decoded once and kept in memory. Larger sets are decoded for each validation.
MAX_HELD_BYTES = 400_000_000
# Time that a loader process continues after SIGTERM, s.
WORKER_GRACE_S = 5


@dataclass(eq=False)
class ImageDataset(Dataset[tuple[torch.Tensor, Target]]):
    """Image data set: pairs of an image and its label or targets.

    Images are ``float32 [3, H, W]``. With ``as_bytes`` they are ``uint8 [3, H, W]``, to be normalized on the device.

    An index counts images over all epochs (``epoch * n + i``) and seeds the augmentation. The augmented image therefore does not depend on
    the number of loader processes.
    """

    samples: Sequence[Sample]
    spec: PreprocessSpec
    _: KW_ONLY
    augment: v2.Transform | None = None
    seed: int = 0
    epochs: int = 1
    as_bytes: bool = False

    def __len__(self) -> int:
        return self.epochs * len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        sample = self.samples[index % len(self.samples)]
        image = load_image(sample.path, intensity=self.spec.intensity)
        if self.as_bytes:
            return v2.functional.pil_to_tensor(_pixels(image, self.spec, self.augment, draw_seed(self.seed, index))), target_of(sample)
        return training_view(image, self.spec, self.augment, draw_seed(self.seed, index)), target_of(sample)


def training_view(image: Image.Image, spec: PreprocessSpec, augment: v2.Transform | None, seed: int) -> torch.Tensor:
    """Return an image as float32 ``[3, H, W]``, normalized: augmented with ``seed``, or with evaluation preprocessing."""
    out = np.empty((3, *spec.input_size), np.float32)
    normalize(_pixels(image, spec, augment, seed), spec, out)
    return torch.from_numpy(out)


def _pixels(image: Image.Image, spec: PreprocessSpec, augment: v2.Transform | None, seed: int) -> Any:
    if augment is None:
        return to_pixels(image, spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return augment(image)


def random_crop(seed: int, view: int) -> Prepare:
    """Make a ``prepare`` function that crops an image at random. The crop depends on ``seed``, ``view`` and the image only.

    Crops have 60 to 100 % of the area, and an aspect ratio of 6:7 to 7:6, as in torchvision's ``RandomResizedCrop``. They are large,
    because frozen features of a small detail are a poor representation of the image.
    """

    def prepare(sample: Sample, spec: PreprocessSpec) -> NDArray[np.float32]:
        image = load_image(sample.path, intensity=spec.intensity)
        rng = np.random.default_rng([seed, view, int(sample.content[:15], 16)])
        area, ratio = rng.uniform(0.6, 1.0), math.exp(rng.uniform(-1, 1) * math.log(7 / 6))
        ratio *= spec.input_size[1] / spec.input_size[0]
        width = min(image.width, max(1, round(math.sqrt(area * image.width * image.height * ratio))))
        height = min(image.height, max(1, round(math.sqrt(area * image.width * image.height / ratio))))
        left, top = int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1))
        whole = spec.model_copy(update={"crop_mode": "squash", "crop_pct": 1.0})
        out = np.empty((3, *spec.input_size), np.float32)
        normalize(to_pixels(image.crop((left, top, left + width, top + height)), whole), spec, out)
        return out

    return prepare


@dataclass(frozen=True)
class TrainingImages:
    """Images of a training.

    Attributes:
        train: Training images.
        val: Validation images.
        replay: Images of the previous task, which are added to the training batches.
    """

    train: Sequence[Sample]
    val: Sequence[Sample]
    replay: Sequence[Sample] = ()


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of a training, and the network for them: the whole network, or its trainable part for cached activations.

    ``val`` is ``None`` without validation images.
    """

    backbone: Backbone
    train: Batches
    val: Batches | None


def training_batches(
    images: TrainingImages,
    spec: PreprocessSpec,
    augment: v2.Transform | None,
    options: BatchOptions,
    *,
    steps: range,
    as_bytes: bool = False,
) -> DataLoader[tuple[torch.Tensor, Target]]:
    """Load the training batches of ``steps``: images ``[batch, 3, H, W]`` and labels.

    Images are normalized float32, or uint8 if ``as_bytes`` is True.
    """
    sampler = make_sampler(len(images.train), options, steps, len(images.replay))
    dataset = ImageDataset([*images.train, *images.replay], spec, augment=augment, seed=options.seed, as_bytes=as_bytes)
    return _load(dataset, options, batch_sampler=sampler)


def validation_batches(samples: Sequence[Sample], spec: PreprocessSpec, options: BatchOptions) -> Batches | None:
    """Load batches of ``samples`` in their order, with evaluation preprocessing. They are kept in memory if they are small."""
    if not samples:
        return None
    batches = in_order(ImageDataset(samples, spec), options)
    height, width = spec.input_size
    return list(batches) if len(samples) * 3 * height * width * 4 <= MAX_HELD_BYTES else batches


def in_order(images: ImageDataset, options: BatchOptions) -> DataLoader[tuple[torch.Tensor, Target]]:
    """Load each image once, in order."""
    return _load(images, options, batch_size=options.batch_size)


def _load(images: ImageDataset, options: BatchOptions, **batching: Any) -> DataLoader[tuple[torch.Tensor, Target]]:
    workers = default_workers() if options.workers is None else options.workers
    pin = options.device == "cuda"
    return DataLoader(images, num_workers=workers, pin_memory=pin, worker_init_fn=leave_signals, **batching)


def leave_signals(_worker: int) -> None:
    """Set the signal handlers of a loader process: ignore SIGINT, and end ``WORKER_GRACE_S`` seconds after SIGTERM.

    A scheduler sends SIGTERM to every process, but the parent may need its loaders until its state is saved. SIGTERM cannot be ignored
    completely, because a parent that fails sends SIGTERM to its loaders and waits for their end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "SIGALRM"):  # on Windows, SIGTERM always ends a process at once
        return
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_S))
    # Exit with status 0: if the alarm killed the loader, torch would raise an error in the parent at any point of its code.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))


def default_workers() -> int:
    """Return the default number of loader processes. It is 0 on at most 2 cores without a GPU, because training needs these cores."""
    cores = available_cores()
    return 0 if cores <= 2 and not torch.cuda.is_available() else min(8, cores - 1)
