"""Resumable samplers: batches of indices that depend on the seed and the step alone."""

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
    """Options of drawing and loading batches of training images.

    Attributes:
        batch_size: images of a step.
        seed: of the order and the augmentation.
        workers: processes that load images; none: by the number of cores.
        device: ``cpu`` or ``cuda``, which trains.
        balanced: draw all classes equally often.
        replay_fraction: of each batch, replayed images.
        shard: rank of this process, and number of processes that train one network.
    """

    batch_size: int
    seed: int = 0
    workers: int | None = None
    device: str = "cpu"
    balanced: bool = False
    replay_fraction: float = 0.25
    shard: tuple[int, int] = (0, 1)


def draw_seed(seed: int, index: int) -> int:
    """Seed of one image or batch of a run; torch's CPU generator uses the lowest 32 bits alone."""
    return (seed * 1_000_003 + index) % 2**32


@dataclass(eq=False)
class StepSampler(Sampler[list[int]]):
    """Batches of ``steps``: a seeded permutation for each epoch. An index counts images through all epochs.

    Of ``replayed`` images, which come after the ``images`` new ones, ``replay_batch`` are drawn in addition.
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
        epoch_steps, every = steps_per_epoch(self.images, self.batch_size), self.images + self.replayed
        for step in self.steps:
            epoch, place = divmod(step, epoch_steps)
            if not order or place == 0:
                generator = torch.Generator().manual_seed(draw_seed(self.seed, epoch))
                order = torch.randperm(self.images, generator=generator).tolist()
            batch = order[place * self.batch_size : (place + 1) * self.batch_size]
            if count := min(self.replayed, self.replay_batch):
                draws = np.random.default_rng([self.seed, step]).choice(self.replayed, count, replace=False)
                batch = [*batch, *(self.images + draws).tolist()]
            yield [epoch * every + index for index in batch]


class BalancedSampler(Sampler[list[int]]):
    """Batches of ``steps`` in which every class is drawn equally often, however few images it has.

    Draws go in rounds that hold each class once, in a seeded order. Within a class its images take turns, in a new seeded order each time
    all of them were drawn. An index counts images through those turns, so that a repeated image gets another augmentation.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, steps: range, *, seed: int) -> None:
        self.batch_size = min(batch_size, len(labels))
        self.steps = steps
        self.seed = seed
        self.images = len(labels)
        self.places = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(labels)]
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}  # of each class: number of the turn, and the order of its images

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield [self._draw(draw) for draw in range(step * self.batch_size, (step + 1) * self.batch_size)]

    def _draw(self, draw: int) -> int:
        turn, place = divmod(draw, len(self.places))
        kind = int(np.random.default_rng([self.seed, turn]).permutation(len(self.places))[place])
        images = self.places[kind]
        again, index = divmod(turn, len(images))
        if self._orders.get(kind, (-1, images))[0] != again:
            self._orders[kind] = again, np.random.default_rng([self.seed, kind, again, 1]).permutation(images)
        return again * self.images + int(self._orders[kind][1][index])


@dataclass(eq=False)
class ShardSampler(Sampler[list[int]]):
    """Shard of each batch for one process. A batch that would leave one image to a process, which BatchNorm cannot take, is not split."""

    batches: StepSampler | BalancedSampler
    rank: int
    world: int

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[self.rank :: self.world] if len(batch) >= 2 * self.world else batch


def make_sampler(labels: Sequence[int], options: BatchOptions, steps: range, replayed: int = 0) -> Sampler[list[int]]:
    """Sampler of ``steps``: all images, or all classes, equally often. The ``replayed`` images come after those of ``labels``."""
    sampler: StepSampler | BalancedSampler
    if options.balanced:
        sampler = BalancedSampler(labels, options.batch_size, steps, seed=options.seed)
    else:
        ratio = options.replay_fraction / (1 - options.replay_fraction)
        more = max(1, round(ratio * min(options.batch_size, len(labels)))) if replayed else 0
        sampler = StepSampler(len(labels), options.batch_size, steps, seed=options.seed, replayed=replayed, replay_batch=more)
    return sampler if options.shard[1] == 1 else ShardSampler(sampler, *options.shard)
