"""Worker process: load bundles, verify their golden images, and compute requests until the server closes the connection.

A separate process protects the server from models that crash, hang or exhaust the memory. Parsing a large body here does not block the
server's event loop.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.images.decode import MAX_PIXELS, SERVED_FORMATS
from edgetl.core.preprocess import Batch, decode_image, to_batch
from edgetl.core.reference import image_statistics
from edgetl.core.system.execution import Choice
from edgetl.errors import EdgetlError, GalleryError, ImageError, RequestError
from edgetl.runtime.gallery.file import read_gallery
from edgetl.runtime.predictor import Predictor, load_variant
from edgetl.runtime.trial import limit_process, memory_for
from edgetl.runtime.verify import check_golden
from edgetl.serve.protocol.content import read_upload
from edgetl.serve.protocol.models import port_of
from edgetl.serve.protocol.open_inference import InferRequest, InputPort
from edgetl.serve.workers.batching import BATCH, best_batch
from edgetl.serve.workers.messages import (
    DEADLINE_PASSED,
    Job,
    Result,
    Stages,
    WorkerConfig,
    pack,
    pack_result,
    receive_message,
    unpack_config,
    unpack_job,
)

logger = logging.getLogger("edgetl.serve")

# Memory limits. They are generous, because they only stop a hostile model from exhausting the host's memory. Per image: activations of the
# model. Per thread: decoding of the largest image, or the values of a JSON body.
IMAGE_MEMORY_BYTES = 2**28
DECODING_BYTES = 12 * MAX_PIXELS
PARSED_PER_BYTE = 20

ENGINE_FAILED = "the inference engine failed on this request."
NO_MEMORY = "the worker does not have enough memory for this request. Try again, or send a smaller image."


@dataclass(frozen=True)
class _Task:
    """Job with a parsed request, its arrival time, and the duration of parsing, seconds."""

    number: int
    model: int
    request: InferRequest
    deadline: float
    arrived_at: float
    parse_s: float


class _TaskQueue:
    """Task queue. A thread takes waiting tasks of one model, up to the batch size.

    There is no batching window. Many requests fill batches without one, and few requests would only be delayed.
    """

    def __init__(self, batches: list[int]) -> None:
        self._tasks: deque[_Task] = deque()
        self._arrived = threading.Condition()
        self._batches = batches

    def put(self, task: _Task) -> None:
        with self._arrived:
            self._tasks.append(task)
            self._arrived.notify()

    def take(self) -> list[_Task]:
        with self._arrived:
            while not self._tasks:
                self._arrived.wait()
            taken = [self._tasks.popleft()]
            model, images = taken[0].model, taken[0].request.count
            while self._tasks and self._tasks[0].model == model:
                images += self._tasks[0].request.count
                if images > self._batches[model]:
                    break
                taken.append(self._tasks.popleft())
            return taken


class _WorkerProcess:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = open(connection.fileno(), "rb", buffering=1 << 18, closefd=False)  # noqa: SIM115 - as long as the process
        self._sending = threading.Lock()
        self._models: list[Predictor] = []
        self._ports: list[InputPort] = []
        self._statistics = False

    def run(self) -> None:
        """Load the bundles, then compute jobs until the server closes the connection."""
        config = unpack_config(receive_message(self._stream)[0])
        self._statistics = config.statistics
        try:
            loaded = _open_all(config)
            self._models = [predictor for _, predictor in loaded]
            self._ports = [port_of(bundle.manifest, predictor.variant) for bundle, predictor in loaded if predictor.variant]
            batches = [config.batch or best_batch(predictor) for predictor in self._models]
        except EdgetlError as error:
            self._send(pack({"error": type(error).__name__, "message": str(error)}))
            return
        except MemoryError:
            self._send(pack({"error": "EngineError", "message": "not enough memory for the bundles. Use fewer threads or processes."}))
            return
        queue = _TaskQueue(batches)
        for number in range(config.threads):
            threading.Thread(target=self._work, args=(queue,), name=f"edgetl-infer-{number}", daemon=True).start()
        self._send(pack({"models": [_describe(*pair, batch) for pair, batch in zip(loaded, batches, strict=True)]}))
        # Exclude permanent objects from garbage collection.
        gc.collect()
        gc.freeze()
        while True:
            header, payload = receive_message(self._stream)
            self._receive(header["job"], unpack_job(header, payload), queue)

    def _send(self, message: bytes) -> None:
        with self._sending, suppress(OSError):
            self._connection.sendall(message)

    def _receive(self, number: int, job: Job, queue: _TaskQueue) -> None:
        """Parse a request and put it into the queue. A request that cannot be parsed gets an error result."""
        arrived_at = time.monotonic()
        try:
            if arrived_at > job.deadline:
                raise RequestError(504, DEADLINE_PASSED)
            request = read_upload(job.upload, self._ports[job.model])
        except RequestError as error:
            self._send(pack_result(number, Result(status=error.status, message=str(error))))
        except MemoryError:
            self._send(pack_result(number, Result(status=503, message=NO_MEMORY)))
        except Exception:
            # A bug in edgetl. The process continues, and the request gets status 500.
            logger.exception("internal error in a worker")
            self._send_internal_errors([number])
        else:
            queue.put(_Task(number, job.model, request, job.deadline, arrived_at, time.monotonic() - arrived_at))

    def _work(self, queue: _TaskQueue) -> None:
        while True:
            tasks = queue.take()
            try:
                self._process(tasks)
            except Exception:
                logger.exception("internal error in a worker")
                self._send_internal_errors([task.number for task in tasks])

    def _send_internal_errors(self, numbers: list[int]) -> None:
        for number in numbers:
            self._send(pack_result(number, Result(status=500, message="internal error. See the log of the server.")))

    def _process(self, tasks: list[_Task]) -> None:
        prepared = []
        for task in tasks:
            ready = self._prepare(task)
            if isinstance(ready, Result):
                self._send(pack_result(task.number, ready))
            else:
                prepared.append((task, *ready))
        if prepared:
            self._compute(self._models[tasks[0].model], prepared)

    def _prepare(self, task: _Task) -> Result | tuple[Batch, Stages]:
        """Return the model input with the durations so far, or an error result."""
        start = time.monotonic()
        if start > task.deadline:
            return Result(status=504, message=DEADLINE_PASSED)
        queue_s = start - task.arrived_at - task.parse_s
        if task.request.tensor is not None:
            return task.request.tensor, Stages(queue_s, task.parse_s)
        try:
            batch, decode_s = _decoded(task.request.images, self._models[task.model])
        except ImageError as error:
            return Result(status=400, message=f"cannot read an image: {error}")
        except MemoryError:
            return Result(status=503, message=NO_MEMORY)
        return batch, Stages(queue_s, task.parse_s + decode_s, time.monotonic() - start - decode_s)

    def _compute(self, model: Predictor, prepared: list[tuple[_Task, Batch, Stages]]) -> None:
        start = time.monotonic()
        try:
            total_input = prepared[0][1] if len(prepared) == 1 else np.concatenate([batch for _, batch, _ in prepared])
            logits = model.logits(total_input)
        except (EdgetlError, MemoryError) as error:
            # The messages of engines may contain paths of this host, so the response omits them.
            for task, _, stages in prepared:
                failed = Result(None, stages, 500, ENGINE_FAILED, engine_failed=not isinstance(error, MemoryError))
                self._send(pack_result(task.number, failed))
            if not _engine_recovers(model):
                # OpenVINO 2026.4 does not recover from a failed memory allocation.
                logger.error("the inference engine does not recover from a failure, stopping the worker process")
                os._exit(1)
            return
        inference_s, first_row = time.monotonic() - start, 0
        for task, batch, stages in prepared:
            rows: NDArray[np.float32] = logits[first_row : first_row + len(batch)]
            first_row += len(batch)
            result = Result(
                rows,
                replace(stages, inference=inference_s),
                response=task.request.response,
                image_statistics=_statistics(batch, model) if self._statistics else (),
                encoded=task.request.tensor is None,
                image_s=inference_s / len(total_input),
            )
            self._send(pack_result(task.number, result))


def _decoded(images: tuple[bytes, ...], model: Predictor) -> tuple[Batch, float]:
    """Return the model input and the duration of decoding, seconds. Only one decoded image is in memory at a time.

    Raises:
        ImageError: an image cannot be read, or the images have too many pixels in total.
    """
    rows: list[Batch] = []
    seconds, pixels = 0.0, 0
    for data in images:
        start = time.monotonic()
        image = decode_image(data, model.spec, formats=SERVED_FORMATS)
        seconds += time.monotonic() - start
        pixels += image.width * image.height
        if pixels > MAX_PIXELS:
            raise ImageError(f"the images of one request have more than {MAX_PIXELS} pixels in total. Send them in separate requests.")
        rows.append(to_batch([image], model.spec, model.input_form))
    total_input: Any = rows[0] if len(rows) == 1 else np.concatenate(rows)
    return total_input, seconds


def _statistics(batch: Batch, model: Predictor) -> tuple[tuple[float, ...], ...]:
    """Return the image statistics of a batch. A tensor may have values that are not finite, which JSON cannot represent: no statistics."""
    found = image_statistics(batch, model.spec)
    return tuple(map(tuple, found.tolist())) if np.isfinite(found).all() else ()


def _engine_recovers(model: Predictor) -> bool:
    """Return true if the engine can still compute a black image."""
    assert model.variant is not None, "the predictor of a bundle has a variant"
    shape = (1, *model.variant.input_shape(model.spec))
    try:
        model.logits(np.zeros(shape, np.uint8) if model.input_form == "uint8" else np.zeros(shape, np.float32))
    except (EdgetlError, MemoryError):
        return False
    return True


def _open_all(config: WorkerConfig) -> list[tuple[Bundle, Predictor]]:
    """Open the bundles, limit the memory of this process according to their sizes, and load them."""
    bundles = [open_bundle(path) for path in config.bundles]
    variants = [bundle.variant(choice.variant) for bundle, choice in zip(bundles, config.choices, strict=True)]
    threads, batch = config.threads, config.batch or BATCH
    per_thread = batch * IMAGE_MEMORY_BYTES + DECODING_BYTES + PARSED_PER_BYTE * config.body_bytes
    buffers = threads * per_thread + (threads * batch + 1) * config.body_bytes
    limit_process(memory_for(sum(variant.size_bytes for variant in variants)) + buffers, oom_score=500)
    return [_open(*given) for given in zip(bundles, config.choices, config.galleries, strict=True)]


def _open(bundle: Bundle, choice: Choice, gallery: tuple[str, str] | None) -> tuple[Bundle, Predictor]:
    """Verify every file of a bundle, load the variant, check its golden images, and use its gallery (path and SHA-256)."""
    for file in bundle.manifest.all_files():
        bundle.read(file)
    variant = bundle.variant(choice.variant)
    predictor = load_variant(bundle, variant, threads=choice.threads, setting=choice.setting)
    check_golden(bundle, variant, predictor)
    if gallery is not None:
        opened = read_gallery(Path(gallery[0]))
        if opened.sha256 != gallery[1]:
            raise GalleryError(f"{opened.path} was changed while the server loaded it. It was not used. Reload the server.")
        opened.check_belongs(bundle)
        predictor.use_gallery(opened)
    return bundle, predictor


def _describe(bundle: Bundle, predictor: Predictor, batch: int) -> dict[str, object]:
    assert predictor.variant is not None
    opened = predictor.gallery
    gallery = {"sha256": opened.sha256, "images": len(opened.gallery.images), "labels": predictor.labels} if opened else None
    return {"manifest": bundle.manifest.model_dump_json(), "variant": predictor.variant.name, "gallery": gallery, "batch": batch}


def main(descriptor: str) -> None:
    """Run the worker on a connected socket with this file descriptor."""
    # The server ends this process. Ctrl-C reaches the whole process group and would otherwise abort jobs in progress.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(EOFError, ConnectionError):
        _WorkerProcess(socket.socket(fileno=int(descriptor))).run()
    # Do not wait for threads, because a model may hang.
    os._exit(0)
