"""Order of the images of sharded training: lanes of shards, which do not depend on the number of processes.

The order of the shards is drawn for each epoch. The images of all shards in this order are cut into lanes of equal length, so two lanes can
share a shard. A batch takes images from the lanes in turn, so the numbers of images of two lanes in a batch differ by 1 at most. A process
reads some of the lanes. The batches of several processes are therefore those of one process, and each image is used once in an epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgetl.errors import ConfigError
from edgetl.train.inputs.samplers import draw_seed

MOST_LANES = 32
# Range of batch sizes in which an error looks for one that the processes can divide.
_SEARCHED = 256


class ShardPass(NamedTuple):
    """Reading of a shard in an epoch.

    Attributes:
        shard: number of the shard.
        seed: seed of the order and the augmentation.
        skip: number of images at the start that are not used, because another lane or an earlier step uses them.
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
        lanes: number of lanes, at most ``batch_size``.
        seed: random seed.
    """

    counts: tuple[int, ...]
    batch_size: int
    lanes: int
    seed: int

    @property
    def epoch_steps(self) -> int:
        """Number of steps of an epoch. The last, smaller batch is left out."""
        return max(1, sum(self.counts) // self.batch_size)

    def images(self, lane: int, step: int) -> int:
        """Return the number of images of a lane in a batch."""
        place = step % self.epoch_steps
        return self._dealt(lane, place + 1) - self._dealt(lane, place)

    def passes(self, lane: int, steps: range) -> Iterator[tuple[ShardPass, int]]:
        """Yield the shards to read for ``steps``, and the number of images to use of each."""
        step = steps.start
        while step < steps.stop:
            epoch, first = divmod(step, self.epoch_steps)
            last = min(self.epoch_steps, first + steps.stop - step)
            yield from self._of_epoch(lane, epoch, self._dealt(lane, first), self._dealt(lane, last))
            step += last - first

    def _dealt(self, lane: int, steps: int) -> int:
        """Return the number of images of a lane in the first ``steps`` of an epoch: image ``i`` belongs to lane ``i`` modulo ``lanes``."""
        return (steps * self.batch_size - lane + self.lanes - 1) // self.lanes

    def _of_epoch(self, lane: int, epoch: int, start: int, stop: int) -> Iterator[tuple[ShardPass, int]]:
        """Yield the shards of the images ``start`` to ``stop`` of a lane. The images of the lanes before it are first in the order."""
        before = sum(self._dealt(earlier, self.epoch_steps) for earlier in range(lane))
        place = 0
        for shard in np.random.default_rng([self.seed, epoch]).permutation(np.flatnonzero(self.counts)).tolist():
            first, after = max(before + start - place, 0), min(self.counts[shard], before + stop - place)
            if after > first:
                yield ShardPass(shard, f"{self.seed} {epoch} {shard}", first), after - first
            place += self.counts[shard]


def make_order(counts: tuple[int, ...], batch_size: int, *, seed: int, processes: int) -> LaneOrder:
    """Make the order of a training. The number of lanes depends on the shards and the batch size only.

    Raises:
        ConfigError: the lanes or the batch size cannot be divided among ``processes``.
    """
    filled = sum(count > 0 for count in counts)
    lanes = count_lanes(filled, batch_size)
    if not _divides(processes, filled, batch_size):
        sizes = sorted(range(1, batch_size + _SEARCHED), key=lambda size: (abs(size - batch_size), size))
        near = next((size for size in sizes if _divides(processes, filled, size)), None)
        remedy = f"Use --batch-size {near}." if near else f"Use at least as many shards as processes, and at most {MOST_LANES} processes."
        raise ConfigError(
            f"{filled} shards with training images and a batch size of {batch_size} form {lanes} lanes, and lanes and batch size cannot be "
            f"divided among {processes} processes. {remedy}"
        )
    return LaneOrder(counts, batch_size, lanes, seed)


def count_lanes(shards: int, batch_size: int) -> int:
    """Return the number of lanes, which is the number of shards that a batch mixes.

    It is a multiple of the largest divisor of the batch size, because several processes need equal parts of the lanes and of the batch. It
    is more than half of the most that is possible: the smallest of ``MOST_LANES``, the number of shards, and the batch size.
    """
    most = min(MOST_LANES, shards, batch_size)
    divisor = max(number for number in range(1, most + 1) if batch_size % number == 0)
    return most - most % divisor


def _divides(processes: int, shards: int, batch_size: int) -> bool:
    return count_lanes(shards, batch_size) % processes == 0 and batch_size % processes == 0


def image_seed(seed: str, key: str) -> int:
    """Return the seed of the augmentation of an image, from the seed of its pass and its key."""
    digest = hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogateescape")).digest()
    return draw_seed(0, int.from_bytes(digest[:4], "big"))
