"""Data set of images for torch: preprocessing of the evaluation, or augmentation, both normalized by the same code."""

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

# Validation images are decoded once where they take no more memory than this, and for each validation otherwise.
MAX_HELD_BYTES = 400_000_000
# Seconds that a loader process goes on after SIGTERM.
WORKER_GRACE_S = 5


@dataclass(eq=False)
class ImageDataset(Dataset[tuple[torch.Tensor, Target]]):
    """Images as ``float32 [3, H, W]`` with their label or targets; with ``as_bytes`` ``uint8 [3, H, W]``, which a device normalizes.

    An index counts images through all epochs (``epoch * n + i``) and seeds the augmentation: an image is the same in the same epoch
    whatever the number of worker processes.
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
        if self.augment is None:
            pixels = to_pixels(image, self.spec)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(draw_seed(self.seed, index))
                pixels = self.augment(image)
        if self.as_bytes:
            return v2.functional.pil_to_tensor(pixels), target_of(sample)
        out = np.empty((3, *self.spec.input_size), np.float32)
        normalize(pixels, self.spec, out)
        return torch.from_numpy(out), target_of(sample)


def random_crop(seed: int, view: int) -> Prepare:
    """Random crop of an image as a ``prepare`` function; the same for the same ``seed``, ``view`` and image, in any thread.

    60 to 100 % of the area at an aspect ratio of 6:7 to 7:6, as in torchvision's ``RandomResizedCrop``. The crops are large, because the
    frozen features of a small detail represent the image badly.
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
    """Images of a training; ``replay`` are shown again beside the training images."""

    train: Sequence[Sample]
    val: Sequence[Sample]
    replay: Sequence[Sample] = ()


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of a training, and the network that takes them: the whole one, or its trainable layers."""

    backbone: Backbone
    train: Batches
    val: Batches


def training_batches(
    images: TrainingImages,
    spec: PreprocessSpec,
    augment: v2.Transform | None,
    options: BatchOptions,
    *,
    steps: range,
    as_bytes: bool = False,
) -> DataLoader[tuple[torch.Tensor, Target]]:
    """Batches of ``steps`` (the next one to the last): images float32, or uint8, ``[batch, 3, H, W]`` and labels."""
    sampler = make_sampler([sample.label for sample in images.train], options, steps, len(images.replay))
    shown = ImageDataset([*images.train, *images.replay], spec, augment=augment, seed=options.seed, as_bytes=as_bytes)
    return _load(shown, options, batch_sampler=sampler)


def validation_batches(samples: Sequence[Sample], spec: PreprocessSpec, options: BatchOptions) -> Batches:
    """Batches of ``samples`` in their order, preprocessed as in the evaluation; decoded once if they take little memory."""
    batches = in_order(ImageDataset(samples, spec), options)
    height, width = spec.input_size
    return list(batches) if len(samples) * 3 * height * width * 4 <= MAX_HELD_BYTES else batches


def in_order(images: ImageDataset, options: BatchOptions) -> DataLoader[tuple[torch.Tensor, Target]]:
    """Every image of ``images`` once."""
    return _load(images, options, batch_size=options.batch_size)


def _load(images: ImageDataset, options: BatchOptions, **batching: Any) -> DataLoader[tuple[torch.Tensor, Target]]:
    workers = default_workers() if options.workers is None else options.workers
    pin = options.device == "cuda"
    return DataLoader(images, num_workers=workers, pin_memory=pin, worker_init_fn=leave_signals, **batching)


def leave_signals(_worker: int) -> None:
    """Signal handlers of a loader process: ignore SIGINT, end some seconds after SIGTERM.

    A scheduler sends SIGTERM to every process, and the parent may need its loaders until its state is saved. A loader that ignored SIGTERM
    for good would block a parent that fails, which ends its loaders by SIGTERM and waits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "SIGALRM"):  # Windows, where SIGTERM ends a process at once
        return
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_S))
    # If the alarm killed a worker, the parent would raise an error wherever it is, also while it ends.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))


def default_workers() -> int:
    """Number of loader processes; 0 if they would take the cores that train."""
    cores = available_cores()
    return 0 if cores <= 2 and not torch.cuda.is_available() else min(8, cores - 1)
