"""Merge of the parts of batch scoring into one file, after a check that they are complete."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from pathlib import Path

from edgetl.core.config import StrictModel
from edgetl.core.files.atomic import write_chunks
from edgetl.core.files.platforms import allow_open_files
from edgetl.data.inputs.blocks import Shard
from edgetl.errors import ConfigError, DataError
from edgetl.scoring.formats.rows import Row, Table, order_of, read_table, table_chunks
from edgetl.scoring.job import sum_counts
from edgetl.scoring.part import check_job
from edgetl.scoring.record import Counts, Job, PartFiles, PartRecord, found_shards

_SHOWN = 20
_PIECE = 1 << 20


class MergeReport(StrictModel):
    """Result of a merge.

    Attributes:
        path: merged file.
        job: job of the parts.
        counts: sums over the parts.
    """

    path: str
    job: Job
    counts: Counts


def merge(folder: Path, out: Path | None = None) -> MergeReport:
    """Merge the parts in an output folder into one file, in the order of the input.

    Args:
        folder: output folder of ``edgetl predict --out``.
        out: file to write, with the suffix of the parts. None writes ``predictions.jsonl``, ``.csv`` or ``.parquet`` into ``folder``. An
            earlier file is replaced.

    Raises:
        ConfigError: parts are missing, or belong to different jobs; or ``out`` has another suffix. The message has their numbers.
        DataError: the file of a part is missing or damaged.
        StorageError: ``out`` cannot be written.
    """
    records = _finished(folder)
    job = records[0].job
    target = out or folder / f"predictions.{job.format}"
    if target.suffix != f".{job.format}":
        raise ConfigError(f"--out {target}: the parts are in the format {job.format}. Choose a name that ends in .{job.format}.")
    paths = [PartFiles(folder, Shard(record.part, job.shards)).output(job.format) for record in records]
    if target.resolve() in {path.resolve() for path in paths}:
        raise ConfigError(f"--out {target} is a part. Choose another name.")
    for record, path in zip(records, paths, strict=True):
        _check_file(record, path)
    counts = sum_counts([record.counts for record in records])
    allow_open_files(len(paths))
    tables = [read_table(job.format, path) for path in paths]
    merged = heapq.merge(*(table.rows for table in tables), key=order_of)
    write_chunks(target, table_chunks(job.format, Table(tables[0].columns, _counted(merged, counts.rows, folder))))
    return MergeReport(path=str(target), job=job, counts=counts)


def _finished(folder: Path) -> list[PartRecord]:
    """Return the records of all parts.

    Raises:
        ConfigError: parts are missing, or belong to different jobs.
    """
    shards = list(found_shards(folder)) if folder.is_dir() else []
    if not shards:
        raise ConfigError(f"{folder} has no parts. Give the folder of edgetl predict --out.")
    if len(counts := sorted({shard.count for shard in shards})) > 1:
        raise ConfigError(f"{folder} has parts of several jobs: with {', '.join(map(str, counts))} shards. Use one folder for each job.")
    records: list[PartRecord] = []
    missing: list[int] = []
    for index in range(counts[0]):
        files = PartFiles(folder, Shard(index, counts[0]))
        record = files.read_done()
        if record is None:
            missing.append(index)
            continue
        if records:
            check_job(record.job, records[0].job, files.done)
        records.append(record)
    if missing:
        names = ", ".join(map(str, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
        raise ConfigError(
            f"{folder}: {len(missing)} of {counts[0]} parts are not finished: {names}. Run edgetl predict with --shard I/{counts[0]} for "
            f"each of them."
        )
    return records


def _check_file(record: PartRecord, path: Path) -> None:
    """Check the size and hash of the file of a part.

    Raises:
        DataError: the file is missing, or differs from its record.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Delete its .done file, and predict the part again.") from error
    if (size, digest.hexdigest()) != (record.output_bytes, record.output_sha256):
        raise DataError(f"{path} differs from its .done file. Delete both, and predict the part again.")


def _counted(rows: Iterator[Row], expected: int, folder: Path) -> Iterator[Row]:
    """Yield the rows, and check their number and order.

    Raises:
        DataError: the number is not that of the records, or two rows are for the same image.
    """
    count, before = 0, None
    for row in rows:
        if (order := order_of(row)) == before:
            raise DataError(f"{folder}: two rows for {order[0]}, item {order[1]}. Delete the folder, and predict the images again.")
        before = order
        count += 1
        yield row
    if count != expected:
        raise DataError(
            f"{folder} has {count} rows, but the .done files state {expected}. Delete the folder, and predict the images again."
        )
