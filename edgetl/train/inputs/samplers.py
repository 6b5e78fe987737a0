"""Resumable samplers: batches of indices that depend only on the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from edgetl.train.config.plan import steps_per_epoch


@dataclass(frozen=True)
class BatchOptions:
    """Options of sampling and loading training batches.

    Attributes:
        batch_size: Number of new images per step.
        seed: Random seed of the order and the augmentation.
        workers: Number of loader processes. None: by the number of cores.
        device: ``cpu`` or ``cuda``.
        cells: Cell of each new image. All cells are drawn equally often. Empty: all images are drawn equally often.
        replay_fraction: Fraction of replayed images in each batch.
        shard: Rank of this process, and number of processes.
    """

    batch_size: int
    seed: int = 0
    workers: int | None = None
    device: str = "cpu"
    cells: tuple[int, ...] = ()
    replay_fraction: float = 0.25
    shard: tuple[int, int] = (0, 1)


def draw_seed(seed: int, index: int) -> int:
    """Derive the seed of an image or a batch. It has 32 bits, because torch's CPU generator ignores higher ones."""
    return (seed * 1_000_003 + index) % 2**32


@dataclass(eq=False)
class StepSampler(Sampler[list[int]]):
    """Sampler of batches for ``steps``, with a seeded permutation for each epoch. An index counts images over all epochs.

    Attributes:
        images: Number of new images.
        batch_size: Number of new images per batch.
        steps: Steps to sample.
        seed: Random seed.
        replayed: Number of replayed images. Their indices follow those of the new images.
        replay_batch: Number of replayed images that are added to each batch.
    """

    images: int
    batch_size: int
    steps: range
    _: KW_ONLY
    seed: int
    replayed: int = 0
    replay_batch: int = 0

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        order: list[int] = []
        epoch_steps, total = steps_per_epoch(self.images, self.batch_size), self.images + self.replayed
        for step in self.steps:
            epoch, index_in_epoch = divmod(step, epoch_steps)
            if not order or index_in_epoch == 0:
                generator = torch.Generator().manual_seed(draw_seed(self.seed, epoch))
                order = torch.randperm(self.images, generator=generator).tolist()
            batch = order[index_in_epoch * self.batch_size : (index_in_epoch + 1) * self.batch_size]
            if count := min(self.replayed, self.replay_batch):
                draws = np.random.default_rng([self.seed, step]).choice(self.replayed, count, replace=False)
                batch = [*batch, *(self.images + draws).tolist()]
            yield [epoch * total + index for index in batch]


class BalancedSampler(Sampler[list[int]]):
    """Sampler of batches for ``steps`` that draws all classes, or other cells of images, equally often.

    Classes are drawn in rounds. Each round has each class once, in a seeded order. The images of a class are drawn in a seeded order, which
    changes after all of them were drawn. An index counts these repetitions, and a repeated image therefore has another augmentation.

    Args:
        labels: Class of each image.
        batch_size: Number of images per batch.
        steps: Steps to sample.
        seed: Random seed.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, steps: range, *, seed: int) -> None:
        self.batch_size = min(batch_size, len(labels))
        self.steps = steps
        self.seed = seed
        self.images = len(labels)
        self.class_images = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(labels)]
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}  # by class: number of the repetition, and order of its images

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield [self._draw(draw) for draw in range(step * self.batch_size, (step + 1) * self.batch_size)]

    def _draw(self, draw: int) -> int:
        turn, place = divmod(draw, len(self.class_images))
        label = int(np.random.default_rng([self.seed, turn]).permutation(len(self.class_images))[place])
        images = self.class_images[label]
        repetition, index = divmod(turn, len(images))
        if self._orders.get(label, (-1, images))[0] != repetition:
            self._orders[label] = repetition, np.random.default_rng([self.seed, label, repetition, 1]).permutation(images)
        return repetition * self.images + int(self._orders[label][1][index])


@dataclass(eq=False)
class ShardSampler(Sampler[list[int]]):
    """Sampler of one process in distributed training: its shard of each batch.

    A small batch is not split if a process would get a single image, because BatchNorm cannot train on it.
    """

    batches: StepSampler | BalancedSampler
    rank: int
    world: int

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[self.rank :: self.world] if len(batch) >= 2 * self.world else batch


def make_sampler(images: int, options: BatchOptions, steps: range, replayed: int = 0) -> Sampler[list[int]]:
    """Make the sampler of ``steps``.

    Args:
        images: Number of new images.
        options: Batch size, seed, balancing, replay and shard.
        steps: Steps to sample.
        replayed: Number of replayed images. Their indices follow those of the new images.
    """
    sampler: StepSampler | BalancedSampler
    if options.cells:
        sampler = BalancedSampler(options.cells, options.batch_size, steps, seed=options.seed)
    else:
        ratio = options.replay_fraction / (1 - options.replay_fraction)
        added = max(1, round(ratio * min(options.batch_size, images))) if replayed else 0
        sampler = StepSampler(images, options.batch_size, steps, seed=options.seed, replayed=replayed, replay_batch=added)
    return sampler if options.shard[1] == 1 else ShardSampler(sampler, *options.shard)
