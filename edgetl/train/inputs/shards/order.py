"""Order of the images of sharded training: lanes of shards, which do not depend on the number of processes.

A lane is a sequence of shards. Each batch has the same number of images of every lane. A process reads some of the lanes. The batches of
several processes are therefore those of one process. The order of the shards is drawn for each epoch, and dealt to the lanes. A lane that
is too short for the epoch starts again, and the rest of a longer one is left out: all processes take the same number of steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np

from edgetl.errors import ConfigError
from edgetl.train.inputs.samplers import draw_seed

MOST_LANES = 32


class ShardPass(NamedTuple):
    """Reading of a shard in an epoch.

    Attributes:
        shard: number of the shard.
        seed: seed of the order and the augmentation.
        skip: number of images at the start that are not used.
    """

    shard: int
    seed: str
    skip: int


@dataclass(frozen=True)
class LaneOrder:
    """Order of the training images.

    Attributes:
        counts: number of training images of each shard.
        batch_size: images per step, over all processes.
        lanes: number of lanes, a divisor of ``batch_size``.
        seed: random seed.
    """

    counts: tuple[int, ...]
    batch_size: int
    lanes: int
    seed: int

    @property
    def per_step(self) -> int:
        """Number of images of each lane in a batch."""
        return self.batch_size // self.lanes

    @property
    def epoch_steps(self) -> int:
        """Number of steps of an epoch. The last, smaller batch is left out."""
        return max(1, sum(self.counts) // self.batch_size)

    def passes(self, lane: int, steps: range) -> Iterator[tuple[ShardPass, int]]:
        """Yield the shards to read for ``steps``, and the number of images to use of each."""
        step = steps.start
        while step < steps.stop:
            epoch, first = divmod(step, self.epoch_steps)
            last = min(self.epoch_steps, first + steps.stop - step)
            yield from self._of_epoch(lane, epoch, first * self.per_step, last * self.per_step)
            step += last - first

    def _of_epoch(self, lane: int, epoch: int, start: int, stop: int) -> Iterator[tuple[ShardPass, int]]:
        filled = np.flatnonzero(self.counts)
        order = np.random.default_rng([self.seed, epoch]).permutation(filled)[lane :: self.lanes].tolist()
        place = 0
        for repetition in count():
            for shard in order:
                first, after = max(start - place, 0), min(self.counts[shard], stop - place)
                if after > first:
                    yield ShardPass(shard, f"{self.seed} {epoch} {repetition} {shard}", first), after - first
                place += self.counts[shard]
                if place >= stop:
                    return


def make_order(counts: tuple[int, ...], batch_size: int, *, seed: int, processes: int) -> LaneOrder:
    """Make the order of a training. The number of lanes depends on the shards and the batch size only.

    Raises:
        ConfigError: the lanes cannot be divided among ``processes``.
    """
    filled = sum(count > 0 for count in counts)
    lanes = max(number for number in range(1, min(MOST_LANES, filled, batch_size) + 1) if batch_size % number == 0)
    if lanes % processes:
        raise ConfigError(
            f"{filled} shards with training images and a batch size of {batch_size} form {lanes} lanes, which cannot be divided among "
            f"{processes} processes. Use a --batch-size that {processes} divides, and at least as many shards as processes."
        )
    return LaneOrder(counts, batch_size, lanes, seed)


def image_seed(seed: str, key: str) -> int:
    """Return the seed of the augmentation of an image, from the seed of its pass and its key."""
    digest = hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogateescape")).digest()
    return draw_seed(0, int.from_bytes(digest[:4], "big"))
