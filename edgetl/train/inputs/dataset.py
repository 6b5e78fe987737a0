"""Training images for torch: the evaluation's preprocessing, or a random crop of the same picture, both normalised by the same code."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from edgetl.core.images.decode import load_image
from edgetl.core.preprocess import PreprocessSpec, normalise, to_pixels
from edgetl.core.system.host import available_cores
from edgetl.data.folder import Sample
from edgetl.data.loading import Prepare, Target, target_of
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import steps_per_epoch
from edgetl.train.loop.ranks import rank, world

# Seconds that a loader process goes on after SIGTERM.
WORKER_GRACE_S = 5


class ImageDataset(Dataset[tuple[torch.Tensor, Target]]):
    """Images as ``float32 [3, H, W]`` with their label, or their targets; as bytes, ``uint8 [3, H, W]``, where a device normalises them.

    An index counts images through all epochs (``epoch * n + i``) and seeds the augmentation, so that a picture looks the same in
    the same epoch whatever the number of worker processes.
    """

    def __init__(
        self, samples: Sequence[Sample], spec: PreprocessSpec, *, augment: v2.Transform | None, seed: int, epochs: int = 1,
        as_bytes: bool = False,
    ) -> None:  # fmt: skip
        self.as_bytes = as_bytes
        self.samples = samples
        self.spec = spec
        self.augment = augment
        self.seed = seed
        self.epochs = epochs

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
        normalise(pixels, self.spec, out)
        return torch.from_numpy(out), target_of(sample)


def draw_seed(seed: int, index: int) -> int:
    """A seed for one picture or batch of a run: torch's generator of the CPU looks at the lowest 32 bits alone."""
    return (seed * 1_000_003 + index) % 2**32


def random_crop(seed: int, view: int) -> Prepare:
    """A function that makes one random crop of an image, the same for the same ``seed``, ``view`` and picture, in any thread.

    60 to 100 % of the area at an aspect ratio of 6:7 to 7:6, as torchvision's ``RandomResizedCrop`` draws them: large crops, because
    the frozen features of a small detail say little about the picture.
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
        normalise(to_pixels(image.crop((left, top, left + width, top + height)), whole), spec, out)
        return out

    return prepare


class StepSampler(Sampler[list[int]]):
    """The batches of steps ``first`` to ``steps``: a seeded permutation for each epoch; indices also tell the epoch.

    A step's batch depends on the seed and the step alone, so that a training can go on where it was stopped. Of ``replayed`` images, which
    come after the ``images`` new ones, ``replay_batch`` are drawn in addition.
    """

    def __init__(
        self, images: int, batch_size: int, steps: int, *, seed: int, first: int = 0, replayed: int = 0, replay_batch: int = 0
    ) -> None:
        self.images = images
        self.all_images = images + replayed
        self.replay_batch = min(replayed, replay_batch)
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.first = first
        self.epoch_steps = steps_per_epoch(images, batch_size)

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[int]]:
        order: list[int] = []
        for step in range(self.first, self.steps):
            epoch, place = divmod(step, self.epoch_steps)
            if not order or place == 0:
                generator = torch.Generator().manual_seed(draw_seed(self.seed, epoch))
                order = torch.randperm(self.images, generator=generator).tolist()
            batch = order[place * self.batch_size : (place + 1) * self.batch_size]
            if self.replay_batch:
                draws = np.random.default_rng([self.seed, step]).choice(self.all_images - self.images, self.replay_batch, replace=False)
                batch = [*batch, *(self.images + draws).tolist()]
            yield [epoch * self.all_images + index for index in batch]


class BalancedSampler(Sampler[list[int]]):
    """Batches of steps ``first`` to ``steps`` in which every class is drawn equally often, however few images it has.

    Draws go in rounds that hold each class once, in a seeded order; within a class its images take turns, in a new seeded order each
    time all of them were drawn. An index counts images through those turns, so that a picture that comes again looks different. As with
    ``StepSampler``, a step's batch depends on the seed and the step alone.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, steps: int, *, seed: int, first: int = 0) -> None:
        self.batch_size = min(batch_size, len(labels))
        self.steps = steps
        self.seed = seed
        self.first = first
        self.images = len(labels)
        self.places = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(labels)]
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}  # of each class: which turn it is, and its images in that turn

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.steps):
            yield [self._draw(draw) for draw in range(step * self.batch_size, (step + 1) * self.batch_size)]

    def _draw(self, draw: int) -> int:
        turn, place = divmod(draw, len(self.places))
        kind = int(np.random.default_rng([self.seed, turn]).permutation(len(self.places))[place])
        images = self.places[kind]
        again, index = divmod(turn, len(images))
        if self._orders.get(kind, (-1, images))[0] != again:
            self._orders[kind] = again, np.random.default_rng([self.seed, kind, again, 1]).permutation(images)
        return again * self.images + int(self._orders[kind][1][index])


def make_sampler(labels: Sequence[int], config: TrainConfig, steps: range, replayed: int = 0) -> Sampler[list[int]]:
    """Which images each of ``steps`` sees: all of them equally often, or all classes (``--balance sampler``); ``config.replay_frac`` of
    each batch are of the ``replayed`` images, which come after those of ``labels``."""
    if config.data.balance == "sampler":
        return _dealt(BalancedSampler(labels, config.optim.batch_size, steps.stop, seed=config.run.seed, first=steps.start))
    share = config.continual.replay_fraction / (1 - config.continual.replay_fraction)
    more = max(1, round(share * min(config.optim.batch_size, len(labels)))) if replayed else 0
    sampler = StepSampler(
        len(labels), config.optim.batch_size, steps.stop, seed=config.run.seed, first=steps.start, replayed=replayed, replay_batch=more
    )
    return _dealt(sampler)


def _dealt(sampler: StepSampler | BalancedSampler) -> Sampler[list[int]]:
    return sampler if world() == 1 else _Share(sampler)


class _Share(Sampler[list[int]]):
    """This process's part of each batch, where several train one network; all of a batch that would leave one image to a process, which
    BatchNorm cannot take."""

    def __init__(self, whole: StepSampler | BalancedSampler) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.whole:
            yield batch[rank() :: world()] if len(batch) >= 2 * world() else batch


def training_batches(
    samples: Sequence[Sample], spec: PreprocessSpec, augment: v2.Transform | None, config: TrainConfig, *,
    steps: range, replay: Sequence[Sample] = (), as_bytes: bool = False,
) -> DataLoader[tuple[torch.Tensor, Target]]:  # fmt: skip
    """The batches of ``steps`` (from the one to go on with, to the last): images float32, or uint8, ``[batch, 3, H, W]`` and labels."""
    sampler = make_sampler([sample.label for sample in samples], config, steps, len(replay))
    images = ImageDataset([*samples, *replay], spec, augment=augment, seed=config.run.seed, as_bytes=as_bytes)
    return DataLoader(images, batch_sampler=sampler, num_workers=_workers(config), pin_memory=_pin(config), worker_init_fn=leave_signals)


def validation_batches(samples: Sequence[Sample], spec: PreprocessSpec, config: TrainConfig) -> DataLoader[tuple[torch.Tensor, Target]]:
    """The evaluation's view of ``samples``, in their order."""
    return in_order(ImageDataset(samples, spec, augment=None, seed=config.run.seed), config)


def in_order(images: ImageDataset, config: TrainConfig) -> DataLoader[tuple[torch.Tensor, Target]]:
    """Every picture of ``images`` once."""
    return DataLoader(images, config.optim.batch_size, num_workers=_workers(config), pin_memory=_pin(config), worker_init_fn=leave_signals)


def leave_signals(_worker: int) -> None:
    """Let the parent alone answer Ctrl-C, and be the first to answer SIGTERM, which a scheduler sends to every process: it may need its
    loaders until its state is saved. Ignoring SIGTERM for good would be worse: a parent that fails ends its loaders so, and waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "SIGALRM"):  # Windows, where SIGTERM ends a process at once
        return
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_S))
    # A worker that the alarm killed would be an error to the parent, raised wherever it is, also while it ends.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))


def _workers(config: TrainConfig) -> int:
    return default_workers() if config.data.workers is None else config.data.workers


def _pin(config: TrainConfig) -> bool:
    return torch.cuda.is_available() and config.run.device != "cpu"


def default_workers() -> int:
    """Loader processes: none where they would take the cores that train."""
    cores = available_cores()
    return 0 if cores <= 2 and not torch.cuda.is_available() else min(8, cores - 1)
