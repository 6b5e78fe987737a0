"""Scoring of one part: read blocks, predict them in several threads, and write the rows in order."""

from __future__ import annotations

import copy
import logging
import math
import queue
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.files.names import printable
from edgetl.core.output_decoding import answer_json, decode, scores_json
from edgetl.core.preprocess import Batch
from edgetl.core.progress import Progress, silent
from edgetl.data.inputs.blocks import Block, Place, Shard, ShardInput
from edgetl.data.inputs.item import WRONG_PATH, Item, reading_error
from edgetl.data.inputs.parquet_files import load_pyarrow
from edgetl.data.inputs.sources import Source, find_sources, input_digest
from edgetl.errors import ImageError
from edgetl.runtime.predictor import Predictor, load
from edgetl.scoring.config import ScoringConfig, ScoringModel
from edgetl.scoring.formats.rows import columns_of
from edgetl.scoring.part import PartWriter, check_job, check_parts, locked_part
from edgetl.scoring.record import Job, PartFiles, PartProgress, PartRecord

_log = logging.getLogger(__name__)

# Blocks in memory for each thread: one that is computed, and one that waits.
_BLOCKS = 2
# Encoded bytes in memory. Reading waits above this limit.
_MOST_BYTES = 512_000_000
# Pixels of decoded images in memory, for each thread.
_MOST_PIXELS = 16_000_000
STAGE = "predicting"


@dataclass(frozen=True)
class PartTask:
    """Task of one process: a shard of the inputs. It can be pickled.

    Attributes:
        model: bundle and variant.
        inputs: input files, folders and patterns, as ``find_sources`` takes them.
        out: output folder.
        shard: shard to predict.
        config: format and columns of the rows.
        threads: threads of the process. Each computes a batch with one thread of the engine.
    """

    model: ScoringModel
    inputs: tuple[str, ...]
    out: Path
    shard: Shard
    config: ScoringConfig
    threads: int


class PartResult(NamedTuple):
    """Record of a finished part. ``skipped`` is true if an earlier process had finished it."""

    record: PartRecord
    skipped: bool


def score_part(task: PartTask, progress: Progress = silent) -> PartResult:
    """Predict the images of a shard, and write its part. A finished part is skipped, an unfinished one is continued.

    An image that cannot be read becomes a row with its error.

    Args:
        task: model, inputs and shard.
        progress: called after each block with the number of images and the expected total.

    Raises:
        ConfigError: the part belongs to another job, or another process writes it.
        DataError: an input cannot be read.
        MissingExtraError: pyarrow is not installed.
        StorageError: the output cannot be written, or the storage does not deliver an input. The part is not finished.
        EdgetlError: the bundle cannot be loaded, as for ``edgetl.load``.
    """
    files = PartFiles(task.out, task.shard)
    if task.config.format == "parquet":
        load_pyarrow()  # before hours of predictions
    sources = find_sources(task.inputs)
    bundle = open_bundle(task.model.bundle)
    with locked_part(files), ExitStack() as stack:
        predictor = load_predictor(bundle, task.model)
        job = _job(task, bundle, predictor, sources)
        check_parts(task.out, task.shard, job)
        if done := files.read_done():
            check_job(done.job, job, files.done)
            _log.info("%s is finished and is skipped: %d images", files.place, done.counts.images)
            return PartResult(done, skipped=True)
        source = ShardInput(sources, task.shard, column=task.config.image_column)
        writer = PartWriter(files, job, source)
        stack.callback(writer.close)
        if writer.start > Place(0, 0):
            _log.info("%s continues after %d rows", files.place, writer.progress.counts.rows)
        scorer = _Scorer(predictor, task.threads, scores=task.config.scores)
        for block, rows, size in scorer.score(source.blocks(writer.start)):
            writer.add(block, rows, size)
            progress(STAGE, *expected(writer.progress))
        record = writer.finish(columns_of(predictor.decoding, scores=task.config.scores), task.threads)
        return PartResult(record, skipped=False)


def load_predictor(bundle: Bundle, model: ScoringModel) -> Predictor:
    """Load a predictor whose engine computes with one thread. Errors as ``edgetl.load``."""
    return load(bundle, variant=model.variant, threads=1, trial=model.trial, tuning=model.tuning)


def expected(progress: PartProgress) -> tuple[int, int]:
    """Return the number of predicted images, and the expected total by the size of the input files."""
    done, total = progress.counts.rows, progress.total_images
    if total is None:
        total = math.ceil(done * progress.total_bytes / progress.read_bytes) if progress.read_bytes else 0
    return done, max(done, total)


def _job(task: PartTask, bundle: Bundle, predictor: Predictor, sources: Sequence[Source]) -> Job:
    assert predictor.variant is not None
    return Job(
        bundle=bundle.manifest.name,
        manifest_sha256=bundle.manifest_sha256,
        gallery=predictor.gallery.sha256 if predictor.gallery else None,
        variant=predictor.variant.name,
        setting=predictor.setting.describe(),
        format=task.config.format,
        scores=task.config.scores,
        image_column=task.config.image_column,
        input_sha256=input_digest(sources),
        files=len(sources),
        shards=task.shard.count,
    )


class _Scored(NamedTuple):
    """Block with its rows, and the size of its predicted images in bytes."""

    block: Block
    rows: list[Mapping[str, Any]]
    image_bytes: int


class _Scorer:
    """Prediction of blocks, in order. Each of several threads has a predictor of its own, with one thread of the engine.

    Args:
        predictor: predictor of the first thread. The others get copies.
        threads: number of threads.
        scores: rows have the scores of all labels.
    """

    def __init__(self, predictor: Predictor, threads: int, *, scores: bool) -> None:
        self._threads, self._scores = threads, scores
        self._free: queue.SimpleQueue[Predictor] = queue.SimpleQueue()
        for item in (predictor, *(copy.copy(predictor) for _ in range(threads - 1))):
            self._free.put(item)

    def score(self, blocks: Iterator[Block]) -> Iterator[_Scored]:
        """Yield the blocks with their rows. The number of blocks and bytes in memory is limited.

        One thread also reads the blocks: handing over each block to another thread costs a fifth of its time with small images.
        """
        if self._threads == 1:
            yield from map(self._score, blocks)
            return
        waiting: deque[tuple[Future[_Scored], int]] = deque()
        held = 0
        pool = ThreadPoolExecutor(self._threads)
        try:
            for block in blocks:
                size = sum(len(item.content) for _, item in block.images if isinstance(item.content, bytes))
                waiting.append((pool.submit(self._score, block), size))
                held += size
                while len(waiting) >= _BLOCKS * self._threads or (held > _MOST_BYTES and waiting):
                    future, size = waiting.popleft()
                    held -= size
                    yield future.result()
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _score(self, block: Block) -> _Scored:
        predictor = self._free.get()
        try:
            return score_block(predictor, block, scores=self._scores)
        finally:
            self._free.put(predictor)


def score_block(predictor: Predictor, block: Block, *, scores: bool) -> _Scored:
    """Predict the images of a block as one batch."""
    rows: list[dict[str, Any]] = []
    batch: list[Batch] = []
    decoded: list[Image.Image] = []
    places: list[int] = []
    size = pixels = 0
    for source, item in block.images:
        row: dict[str, Any] = {"file": source.name}
        if source.kind != "image":
            row |= {"item": item.number, "key": item.key}
        try:
            image = _read(predictor, item)
            decoded.append(image)
            pixels += image.width * image.height
            places.append(len(rows))
            size += source.size_bytes if source.kind == "image" else len(item.content) if isinstance(item.content, bytes) else 0
        except ImageError as error:
            row["error"] = printable(str(error))
        rows.append(row)
        if pixels >= _MOST_PIXELS:
            batch.append(predictor.prepare(*decoded))
            decoded.clear()
            pixels = 0
    if decoded:
        batch.append(predictor.prepare(*decoded))
    if batch:
        outputs = predictor.logits(cast(Batch, np.concatenate(batch)) if len(batch) > 1 else batch[0])
        for place, prediction in zip(places, decode(predictor.decoding, outputs), strict=True):
            if not all(map(math.isfinite, prediction.scores)):
                rows[place]["error"] = "the network returned a score that is not a number."
                continue
            rows[place] |= answer_json(predictor.decoding, prediction)
            if scores:
                rows[place]["scores"] = scores_json(predictor.decoding, prediction)
    return _Scored(block, list(rows), size)


def _read(predictor: Predictor, item: Item) -> Image.Image:
    """Decode an image.

    Raises:
        ImageError: it cannot be read.
        StorageError: the storage does not deliver its file.
    """
    if item.error or item.content is None:
        raise ImageError(item.error)
    try:
        return predictor.read(item.content)
    except ImageError as error:
        cause = error.__cause__
        if isinstance(item.content, Path) and isinstance(cause, OSError) and cause.errno not in WRONG_PATH:
            raise reading_error(item.content, cause) from error
        raise
