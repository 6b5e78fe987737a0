"""Stream of the training images of a shard. The only module that imports webdataset."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgetl.core.files.names import printable
from edgetl.core.files.regular import open_plain
from edgetl.data.shards.index import ShardSet
from edgetl.data.shards.members import annotate, damaged, is_image
from edgetl.errors import DataError

# Number of images in the shuffle buffer of a shard.
BUFFER = 256


class StreamedImage(NamedTuple):
    """Training image: its key, encoded bytes and class index."""

    key: str
    data: bytes
    label: int


def read_training_images(shards: ShardSet, number: int) -> Iterator[StreamedImage]:
    """Yield the training images of a shard in their order.

    Raises:
        DataError: the shard is damaged, or changed since the scan.
    """
    path, images = shards.files[number], 0
    for sample in _samples(path):
        key = sample["__key__"]
        image = next((value for suffix, value in sample.items() if is_image(suffix)), None)
        if image is None:
            continue
        annotation = annotate(key, sample, printable(path), shards.table)
        if shards.rule.part_of(key, annotation) != "train":
            continue
        images += 1
        if (label := shards.classes.get(annotation.label)) is None:
            raise _changed(path)
        yield StreamedImage(key, image, label)
    if images != shards.train_counts[number]:
        raise _changed(path)


def shuffled(images: Iterator[StreamedImage], seed: str) -> Iterator[StreamedImage]:
    """Yield ``images`` in a random order, by a shuffle buffer with a seeded generator."""
    import webdataset  # noqa: PLC0415 (not part of the train extra)

    stage: Any = webdataset.shuffle(BUFFER, initial=BUFFER, rng=random.Random(seed))
    yield from stage(images)


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    from webdataset.tariterators import group_by_keys, tar_file_iterator  # noqa: PLC0415 (not part of the train extra)

    last = ""
    try:
        with open_plain(path) as file:
            for sample in group_by_keys({**member, "__url__": str(path)} for member in tar_file_iterator(file)):
                last = sample["__key__"]
                yield sample
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        raise damaged(path, last, str(error.args[0] if error.args else error)) from error


def _changed(path: Path) -> DataError:
    return DataError(f"{printable(path)} changed during the training. Copy this shard again, and start again with --overwrite.")
