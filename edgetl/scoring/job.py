"""Batch scoring: one part in this process, or all parts through an executor."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgetl.core.config import StrictModel
from edgetl.core.progress import Progress, silent
from edgetl.data.inputs.blocks import Shard
from edgetl.errors import ConfigError
from edgetl.executors.executor import Executor
from edgetl.scoring.record import Counts, PartFiles, PartRecord
from edgetl.scoring.score import STAGE, PartResult, PartTask, expected, score_part

# Interval between two readings of the progress of other processes, seconds.
_INTERVAL_S = 1.0


class ScoringReport(StrictModel):
    """Result of batch scoring.

    Attributes:
        out: output folder.
        parts: records of the parts of this call.
        skipped: numbers of the parts that an earlier call had finished.
        counts: sums over the parts. ``seconds`` is the sum of the times of the processes.
        images_per_s: predicted images per second of one process.
        bytes_per_image: mean size of an encoded image, bytes.
    """

    out: str
    parts: tuple[PartRecord, ...]
    skipped: tuple[int, ...]
    counts: Counts
    images_per_s: float
    bytes_per_image: float


def score(task: PartTask, *, executor: Executor | None = None, progress: Progress = silent) -> ScoringReport:
    """Predict the images of one shard in this process, or of all shards with an executor.

    Args:
        task: model, inputs, output folder and shard. With an executor, all ``task.shard.count`` parts are predicted.
        executor: executor of the parts; none for this process.
        progress: called with the number of images and the expected total.

    Raises:
        EdgetlError: as ``score_part``.
    """
    if executor is None:
        return _report(task.out, [score_part(task, progress)])
    count = task.shard.count
    tasks = [replace(task, shard=Shard(index, count)) for index in range(count)]
    with _watched(task.out, [item.shard for item in tasks], progress):
        return _report(task.out, list(executor.map(score_part, tasks)))


def _report(out: Path, results: Sequence[PartResult]) -> ScoringReport:
    parts = tuple(result.record for result in results)
    total = sum_counts([part.counts for part in parts])
    return ScoringReport(
        out=str(out),
        parts=parts,
        skipped=tuple(result.record.part for result in results if result.skipped),
        counts=total,
        images_per_s=total.images / total.seconds if total.seconds else 0.0,
        bytes_per_image=total.image_bytes / total.images if total.images else 0.0,
    )


def sum_counts(counts: Sequence[Counts]) -> Counts:
    """Return the sums of the counts of several parts."""
    left_out: dict[str, int] = {}
    for item in counts:
        for suffix, number in item.left_out.items():
            left_out[suffix] = left_out.get(suffix, 0) + number
    return Counts(
        images=sum(item.images for item in counts),
        errors=sum(item.errors for item in counts),
        left_out=dict(sorted(left_out.items())),
        image_bytes=sum(item.image_bytes for item in counts),
        seconds=sum(item.seconds for item in counts),
    )


@contextmanager
def _watched(out: Path, shards: Sequence[Shard], progress: Progress) -> Iterator[None]:
    """Report the progress of the parts that other processes write, until the block ends."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_INTERVAL_S):
            found = [_progress_of(PartFiles(out, shard)) for shard in shards]
            started = [item for item in found if item is not None]
            if started:
                # Parts that have not begun are estimated by the others.
                total = sum(total for _, total in started) * len(found) // len(started)
                progress(STAGE, sum(done for done, _ in started), total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _progress_of(files: PartFiles) -> tuple[int, int] | None:
    """Return the number of images and the expected total of a part; none if it has not begun."""
    try:
        if done := files.read_done():
            return done.counts.rows, done.counts.rows
        if current := files.read_progress():
            return expected(current)
    except ConfigError:  # removed or replaced at this moment
        return None
    return None
