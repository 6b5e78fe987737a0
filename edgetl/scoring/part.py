"""Output of a part: rows in chunks with a progress record, resume after an interruption, and the finished file.

Rows are appended to ``part-I-of-N.rows``. A checkpoint flushes them to the disk, and then replaces ``part-I-of-N.progress``, which has the
length of the file. A restart truncates the file to this length, and continues after the recorded block. A finished part is written as a
whole, then its ``.done`` record, and then the two other files are removed.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from edgetl.core.files.atomic import storage_error, write_chunks, write_text
from edgetl.core.output.locks import locked
from edgetl.data.inputs.blocks import Block, Place, Shard, ShardInput
from edgetl.errors import ConfigError, StorageError
from edgetl.scoring.formats.rows import json_line, part_chunks
from edgetl.scoring.record import Counts, Job, PartFiles, PartProgress, PartRecord, found_shards

# Time between two checkpoints, seconds. After a crash, at most this much work is repeated.
CHECKPOINT_S = 2.0
# The lock of a killed process is released when its children end, too.
_LOCK_WAIT_S = 3.0


@contextmanager
def locked_part(files: PartFiles) -> Iterator[None]:
    """Hold the lock of a part. The output folder is created if it is missing.

    Raises:
        ConfigError: another process writes the part.
        StorageError: the folder cannot be created or written.
    """
    folder = files.place.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    end = time.monotonic() + _LOCK_WAIT_S
    with ExitStack() as stack:
        while not _acquired(stack, files):
            if time.monotonic() >= end:
                raise ConfigError(f"another process writes {files.place}. Wait until it ends, or choose another --out or --shard.")
            time.sleep(0.1)
        yield


def _acquired(stack: ExitStack, files: PartFiles) -> bool:
    try:
        return stack.enter_context(locked(files.place))
    except OSError as error:
        raise storage_error(files.place, error) from error


def check_job(found: Job, job: Job, path: Path) -> None:
    """Check that the record of a part at ``path`` belongs to ``job``.

    Raises:
        ConfigError: it belongs to another bundle, input, or set of options.
    """
    if differences := found.differences(job):
        raise ConfigError(f"{path} belongs to another job: {differences}. Choose another --out, or repeat the command of that job.")


def check_parts(folder: Path, shard: Shard, job: Job) -> None:
    """Check that the parts in an output folder have the same number of shards as ``shard``, and belong to ``job``.

    One record of a finished part is read, because all finished parts have the same job.

    Raises:
        ConfigError: a part has another number, or belongs to another job.
    """
    other = next((found for found in found_shards(folder) if found.count != shard.count), None)
    if other is not None:
        raise ConfigError(
            f"{folder} has part {other.index} of {other.count}, but this is part {shard.index} of {shard.count}. Choose another --out, or "
            f"the same number of shards (--shard I/{other.count} or --processes {other.count})."
        )
    for found in found_shards(folder):
        files = PartFiles(folder, found)
        if done := files.read_done():
            check_job(done.job, job, files.done)
            return


class PartWriter:
    """Writer of an unfinished part. Its lock is held.

    Args:
        files: paths of the part.
        job: job of the part.
        source: images of the part.

    Attributes:
        start: place of the first block to predict.

    Raises:
        ConfigError: the unfinished part belongs to another job.
        StorageError: the files cannot be written.
    """

    def __init__(self, files: PartFiles, job: Job, source: ShardInput) -> None:
        self._files, self._job = files, job
        before = files.read_progress()
        if before is not None:
            check_job(before.job, job, files.progress)
        else:
            before = PartProgress(job=job, total_bytes=source.total_bytes, total_images=source.total_images)
        self.progress = before
        self._counts = before.counts
        self._left_out = Counter(before.counts.left_out)
        self.start = Place(before.unit, before.block)
        self._begun = self._saved = time.monotonic()
        self._file = self._open(before.written_bytes)
        try:
            self._save(before)
        except StorageError:
            self.close()
            raise

    def _open(self, length: int) -> io.BufferedRandom:
        """Open the rows, without those of an unfinished chunk.

        Raises:
            ConfigError: saved rows are missing.
            StorageError: the file cannot be written.
        """
        files = self._files
        try:
            descriptor = os.open(files.rows, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            with ExitStack() as stack:
                file = stack.enter_context(open(descriptor, "r+b"))
                if os.fstat(descriptor).st_size < length:
                    raise ConfigError(f"{files.rows} is shorter than {files.progress} states. Delete both, and predict the part again.")
                file.truncate(length)
                file.seek(length)
                stack.pop_all()
                return file
        except OSError as error:
            raise storage_error(files.rows, error) from error

    def add(self, block: Block, rows: list[Mapping[str, Any]], image_bytes: int) -> None:
        """Append the rows of a block. Every ``CHECKPOINT_S`` seconds, flush them and save the progress.

        Raises:
            StorageError: the disk is full.
        """
        failed = sum("error" in row for row in rows)
        self._left_out += block.left_out
        counts = self._counts
        self._counts = counts.model_copy(
            update={
                "images": counts.images + len(rows) - failed,
                "errors": counts.errors + failed,
                "left_out": dict(self._left_out),
                "image_bytes": counts.image_bytes + image_bytes,
            }
        )
        position = {"unit": block.place.unit, "block": block.place.block + 1, "read_bytes": block.read_bytes}
        try:
            self._file.writelines(map(json_line, rows))
        except OSError as error:
            raise self._failed(error) from error
        self.progress = self.progress.model_copy(update={**position, "counts": self._timed()})
        if time.monotonic() - self._saved >= CHECKPOINT_S:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Flush the rows to the disk, and save the progress.

        Raises:
            StorageError: the disk is full.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._save(self.progress.model_copy(update={"written_bytes": self._file.tell(), "counts": self._timed()}))
        except OSError as error:
            raise self._failed(error) from error

    def finish(self, columns: tuple[str, ...], threads: int) -> PartRecord:
        """Write the output and its record, and remove the files of the unfinished part.

        Raises:
            StorageError: the disk is full.
        """
        self.checkpoint()
        self._file.close()
        files, digest, size = self._files, hashlib.sha256(), 0

        def chunks() -> Iterator[bytes]:
            nonlocal size
            for chunk in part_chunks(self._job.format, columns, files.rows):
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        write_chunks(files.output(self._job.format), chunks())
        record = PartRecord(
            job=self._job,
            part=files.shard.index,
            threads=threads,
            counts=self._timed(),
            output_bytes=size,
            output_sha256=digest.hexdigest(),
        )
        write_text(files.done, record.model_dump_json(indent=2) + "\n")
        for path in (files.progress, files.rows):
            path.unlink(missing_ok=True)
        return record

    def close(self) -> None:
        """Close the file of rows. Rows after the last checkpoint are predicted again."""
        with suppress(OSError):
            self._file.close()

    def _timed(self) -> Counts:
        """Return the counts with the time of all starts."""
        now = time.monotonic()
        self._counts = self._counts.model_copy(update={"seconds": self._counts.seconds + now - self._begun})
        self._begun = now
        return self._counts

    def _save(self, progress: PartProgress) -> None:
        self.progress = progress
        write_text(self._files.progress, progress.model_dump_json(indent=2) + "\n")
        self._saved = time.monotonic()

    def _failed(self, error: OSError) -> StorageError:
        reason = error.strerror or str(error)
        return StorageError(f"cannot write {self._files.rows}: {reason}. Free some space, and repeat the command: it continues this part.")
