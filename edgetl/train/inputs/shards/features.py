"""Features of the training images of shards: one pass of the frozen backbone, stored in files that are mapped into memory in chunks.

The files are written shard by shard, and each shard is flushed before it counts as done. A stopped pass continues after the last of them.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config import StrictModel, read_json
from edgetl.core.files.atomic import storage_error, write_text
from edgetl.core.files.names import printable
from edgetl.core.preprocess import PreprocessSpec, decode_image, preprocess
from edgetl.core.progress import Progress
from edgetl.core.system.threads import map_ahead
from edgetl.data.folder import Sample
from edgetl.data.shards.index import ShardSet
from edgetl.errors import ImageError, StorageError
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.inputs.shards.batches import check_unreadable
from edgetl.train.inputs.shards.stream import StreamedImage, read_training_images

_log = logging.getLogger(__name__)

FEATURES_NAME, LABELS_NAME, VALIDATION_NAME, PROGRESS_NAME = "features.npy", "labels.npy", "validation.npy", "progress.json"
# Label of an image that cannot be decoded.
UNREADABLE = -1
# Size of the part of the features that is in memory at once.
CHUNK_BYTES = 16_000_000
_ROW_TYPES = {FEATURES_NAME: "<f4", LABELS_NAME: "<i8"}


class _Done(StrictModel):
    """Progress of a pass.

    Attributes:
        digest: digest of the shards.
        network: digest of the network and its preprocessing.
        width: number of features of an image.
        shards: numbers of the shards of this process that are done.
        unreadable: keys of the images that cannot be decoded.
    """

    schema_version: Literal[1] = 1
    digest: str
    network: str = ""
    width: int
    shards: tuple[int, ...]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class FeatureTable:
    """Features and labels of the training images of this process, on disk.

    Attributes:
        folder: folder of the two files, in NumPy's format.
        rows: number of images, with those that cannot be decoded.
        width: number of features of an image.
        unreadable: keys of the images that cannot be decoded.
    """

    folder: Path
    rows: int
    width: int
    unreadable: tuple[str, ...]

    def chunks(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Yield features float32 ``[n, width]`` and labels int64 ``[n]``. Each chunk is mapped, copied and unmapped."""
        count = max(1, CHUNK_BYTES // (4 * self.width))
        for start in range(0, self.rows, count):
            stop = min(start + count, self.rows)
            labels = np.array(np.load(self.folder / LABELS_NAME, mmap_mode="r")[start:stop])
            features = np.array(np.load(self.folder / FEATURES_NAME, mmap_mode="r")[start:stop])
            known = labels != UNREADABLE
            yield (features, labels) if known.all() else (features[known], labels[known])


def stream_features(
    shards: ShardSet, numbers: Sequence[int], extract: FrozenFeatures, folder: Path, *, network: str, progress: Progress
) -> FeatureTable:
    """Compute the features of the training images of the shards ``numbers``, or continue a stopped pass with the same ``network``.

    ``network`` is the digest of the network and its preprocessing.

    Raises:
        DataError: a shard is damaged or changed, or more than 10 % of the images cannot be decoded.
        StorageError: the features cannot be written.
    """
    rows = sum(shards.train_counts[number] for number in numbers)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # also for a process without shards: the folder has the validation features, too
    except OSError as error:
        raise storage_error(folder, error) from error
    done = _read_progress(folder, shards, numbers, network)
    start = sum(shards.train_counts[number] for number in done.shards) if done else 0
    for number in numbers[len(done.shards) if done else 0 :]:
        features, labels, unreadable = _of_shard(shards, number, extract)
        try:
            if done is None:
                done = _Done(digest=shards.digest, network=network, width=features.shape[1], shards=(), unreadable=())
                _create(folder, rows, done.width)
            _write(folder / FEATURES_NAME, start, features, (rows, done.width))
            _write(folder / LABELS_NAME, start, labels, (rows,))
            done = done.model_copy(update={"shards": (*done.shards, number), "unreadable": (*done.unreadable, *unreadable)})
            write_text(folder / PROGRESS_NAME, done.model_dump_json())
        except OSError as error:
            raise storage_error(folder, error) from error
        start += len(labels)
        check_unreadable(shards, done.unreadable, start)
        progress("computing features", start, rows)
    width, unreadable = (done.width, done.unreadable) if done else (1, ())
    return FeatureTable(folder, rows, width, unreadable)


def mapped_features(extract: FrozenFeatures, samples: Sequence[Sample], file: Path, progress: Progress) -> NDArray[np.float32]:
    """Compute the features of ``samples``, float32 ``[n, width]``, write them to ``file``, and map it into memory.

    Raises:
        StorageError: the file cannot be written.
    """
    written = 0
    try:
        with file.open("wb") as out:
            for rows in extract.blocks(samples, progress=progress):
                if not written:
                    _write_header(out, FEATURES_NAME, (len(samples), rows.shape[1]))
                out.write(np.ascontiguousarray(rows, _ROW_TYPES[FEATURES_NAME]).tobytes())
                written += len(rows)
    except OSError as error:
        raise storage_error(file, error) from error
    mapped: NDArray[np.float32] = np.load(file, mmap_mode="r")
    return mapped


def _read_progress(folder: Path, shards: ShardSet, numbers: Sequence[int], network: str) -> _Done | None:
    """Return the progress of a stopped pass over the same shards with the same network, or none."""
    path = folder / PROGRESS_NAME
    if not path.is_file():
        return None
    done = read_json(path, _Done, StorageError)
    others = [
        name
        for name, same in (
            ("another backbone, other weights or another preprocessing", done.network == network),
            ("other shards or splits", done.digest == shards.digest),
            ("another number of processes", done.shards == tuple(numbers[: len(done.shards)])),
        )
        if not same
    ]
    if others:
        _log.warning("%s has features of %s: all features are computed again", printable(folder), " and ".join(others))
    return None if others else done


def _create(folder: Path, rows: int, width: int) -> None:
    """Create the files of the features, with headers only.

    Raises:
        StorageError: the disk is too small for the features.
    """
    needed, free = rows * (4 * width + 8), shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"the features of {rows:,} images need {needed / 1e9:.1f} GB in {printable(folder)}, and {free / 1e9:.1f} GB are free. Choose "
            f"an --out on a larger disk, or --strategy full, which stores no features."
        )
    (folder / PROGRESS_NAME).unlink(missing_ok=True)  # of other features, which are replaced now
    for name, shape in ((FEATURES_NAME, (rows, width)), (LABELS_NAME, (rows,))):
        with (folder / name).open("wb") as file:
            _write_header(file, name, shape)


def _write_header(file: IO[bytes], name: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": _ROW_TYPES[name], "fortran_order": False, "shape": shape})


def _write(path: Path, start: int, rows: NDArray[np.float32] | NDArray[np.int64], shape: tuple[int, ...]) -> None:
    """Write ``rows`` from row ``start`` on, and flush them. A plain write reports a full disk, which a mapped file cannot."""
    with path.open("r+b") as file:
        _write_header(file, path.name, shape)
        file.seek(start * rows[:1].nbytes, os.SEEK_CUR)
        file.write(np.ascontiguousarray(rows, _ROW_TYPES[path.name]).tobytes())
        file.flush()
        os.fsync(file.fileno())


def _of_shard(shards: ShardSet, number: int, extract: FrozenFeatures) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[str, ...]]:
    """Compute the features of a shard, float32 ``[n, width]``, with labels and the keys of images that cannot be decoded."""
    rows: list[NDArray[np.float32]] = []
    labels: list[int] = []
    unreadable: list[str] = []
    for images in _batches(read_training_images(shards, number), extract.spec, extract.batch_size):
        unreadable += [image.key for image, view in images if view is None]
        labels += [UNREADABLE if view is None else image.label for image, view in images]
        if known := [view for _, view in images if view is not None]:
            rows.append(extract.compute(np.stack(known)))
    if not rows:  # the whole training has a limit, and a small shard may have broken images only
        rows.append(extract.compute(np.zeros((1, 3, *extract.spec.input_size), np.float32))[:0])
    found = np.array(labels, np.int64)
    features = np.zeros((len(found), rows[0].shape[1]), np.float32)
    features[found != UNREADABLE] = np.concatenate(rows)
    return features, found, tuple(unreadable)


_View = NDArray[np.float32]


def _batches(images: Iterator[StreamedImage], spec: PreprocessSpec, size: int) -> Iterator[list[tuple[StreamedImage, _View | None]]]:
    """Yield batches of images and their inputs ``[3, H, W]``, none for an image that cannot be decoded. Threads decode ahead."""
    batch: list[tuple[StreamedImage, _View | None]] = []
    for found in map_ahead(lambda image: (image, _view(image.data, spec)), images, ahead=size):
        batch.append(found)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _view(data: bytes, spec: PreprocessSpec) -> _View | None:
    try:
        return preprocess(decode_image(data, spec), spec)
    except ImageError:
        return None
