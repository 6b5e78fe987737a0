"""Training batches from shards. The images of a batch do not depend on the number of processes and loaders, and can start at any step."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.transforms import v2

from edgetl.core.files.names import printable
from edgetl.core.images.decode import load_image
from edgetl.core.preprocess import PreprocessSpec
from edgetl.data.folder import MAX_BROKEN_RATIO
from edgetl.data.shards.index import ShardSet
from edgetl.errors import DataError, EdgetlError, ImageError
from edgetl.train.inputs.dataset import default_workers, leave_signals, training_view
from edgetl.train.inputs.samplers import BatchOptions
from edgetl.train.inputs.shards.order import LaneOrder, image_seed, make_order
from edgetl.train.inputs.shards.stream import StreamedImage, read_training_images, shuffled

_log = logging.getLogger(__name__)

# Images that are read before the ratio of unreadable ones is checked.
LEAST_READ = 100


@dataclass(frozen=True)
class _Part:
    """Images of a batch that one loader reads.

    Attributes:
        images: ``float32 [n, 3, H, W]``.
        labels: ``int64 [n]``.
        places: number of each image, which increases in the order of the batch.
        unreadable: keys of the images that cannot be decoded. They are not in the batch.
        error: message of the error that ended the loader.
    """

    images: torch.Tensor
    labels: torch.Tensor
    places: tuple[int, ...]
    unreadable: tuple[str, ...] = ()
    error: str = ""


@dataclass(eq=False)
class _Lanes(IterableDataset[_Part]):
    """Lanes of this process, divided among its loaders. Each loader yields its part of every step."""

    shards: ShardSet
    order: LaneOrder
    lanes: Sequence[int]
    steps: range
    spec: PreprocessSpec
    augment: v2.Transform | None

    def __iter__(self) -> Iterator[_Part]:
        worker = get_worker_info()
        own = self.lanes if worker is None else self.lanes[worker.id :: worker.num_workers]
        streams = {lane: self._images(lane) for lane in own}
        try:
            for step in self.steps:
                yield self._part(streams, step)
        except EdgetlError as error:  # a loader process cannot raise it with its own message
            yield _Part(torch.empty(0), torch.empty(0), (), error=str(error))

    def _images(self, lane: int) -> Iterator[tuple[StreamedImage, int]]:
        for found, used in self.order.passes(lane, self.steps):
            images = shuffled(read_training_images(self.shards, found.shard), found.seed)
            for image in islice(images, found.skip, found.skip + used):
                yield image, image_seed(found.seed, image.key)

    def _part(self, streams: dict[int, Iterator[tuple[StreamedImage, int]]], step: int) -> _Part:
        rows, labels, places, unreadable = [], [], [], []
        for lane, stream in streams.items():
            for number, (image, seed) in enumerate(islice(stream, self.order.images(lane, step))):
                try:
                    decoded = load_image(image.data, intensity=self.spec.intensity)
                except ImageError:
                    unreadable.append(image.key)
                    continue
                rows.append(training_view(decoded, self.spec, self.augment, seed))
                labels.append(image.label)
                places.append(lane * self.order.batch_size + number)  # by lane, then by the order in the lane
        images = torch.stack(rows) if rows else torch.empty(0, 3, *self.spec.input_size)
        return _Part(images, torch.tensor(labels, dtype=torch.int64), tuple(places), tuple(unreadable))


@dataclass(eq=False)
class ShardBatches:
    """Training batches of this process: images ``float32 [n, 3, H, W]`` and labels ``int64 [n]``, for each of ``steps``.

    Images that cannot be decoded are left out of their batch. Their keys are in ``unreadable``.
    """

    shards: ShardSet
    options: BatchOptions
    steps: range
    spec: PreprocessSpec
    augment: v2.Transform | None
    unreadable: dict[str, None] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rank, processes = self.options.shard
        order = make_order(self.shards.train_counts, self.options.batch_size, seed=self.options.seed, processes=processes)
        lanes = range(rank, order.lanes, processes)
        workers = min(default_workers() if self.options.workers is None else self.options.workers, len(lanes))
        dataset = _Lanes(self.shards, order, lanes, self.steps, self.spec, self.augment)
        parts = iter(DataLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=leave_signals))
        read = 0
        for step in self.steps:
            found = [next(parts) for _ in range(max(1, workers))]
            if errors := [part.error for part in found if part.error]:
                raise DataError(errors[0])
            self.unreadable.update(dict.fromkeys(key for part in found for key in part.unreadable))
            read += sum(order.images(lane, step) for lane in lanes)
            check_unreadable(self.shards, tuple(self.unreadable), min(read, sum(self.shards.train_counts)))
            places = torch.tensor([place for part in found for place in part.places])
            if not len(places):
                raise DataError(f"{printable(self.shards.pattern)}: no image of step {step + 1} can be decoded. Raise --batch-size.")
            rows = places.argsort()
            yield torch.cat([part.images for part in found if part.places])[rows], torch.cat([part.labels for part in found])[rows]


def check_unreadable(shards: ShardSet, keys: Sequence[str], read: int) -> None:
    """Check the ratio of images that cannot be decoded among the ``read`` images.

    Raises:
        DataError: the ratio is above that of folders.
    """
    if len(keys) > MAX_BROKEN_RATIO * max(read, LEAST_READ):
        names = ", ".join(map(printable, keys[:5]))
        raise DataError(
            f"{printable(os.fspath(shards.pattern))}: {len(keys)} of {read} training images cannot be decoded ({names}"
            f"{', …' if len(keys) > 5 else ''}). The limit is {MAX_BROKEN_RATIO:.0%}. Pack the images again without these files."
        )


def warn_unreadable(keys: Sequence[str]) -> None:
    """Log the training images that cannot be decoded and were left out."""
    if keys:
        names = ", ".join(map(printable, keys[:5]))
        _log.warning("%d training images cannot be decoded and are left out: %s%s", len(keys), names, ", …" if len(keys) > 5 else "")
