"""Worker process: load bundles, verify their golden images, and compute requests until the server ends.

It is a separate process. A network that crashes, hangs or exhausts the memory ends this process and not the server, and parsing a large
body does not block the server's event loop.
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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.images.decode import MAX_PIXELS, SERVED_FORMATS, load_image
from edgetl.core.manifest import Variant
from edgetl.core.preprocess import Batch, to_batch
from edgetl.errors import EdgetlError, ImageError, RequestError
from edgetl.runtime.engine import choose_variant
from edgetl.runtime.predictor import Predictor, load
from edgetl.runtime.trial import limit_process, memory_for
from edgetl.runtime.verify import check_golden
from edgetl.serve.protocol.content import read_upload
from edgetl.serve.protocol.models import port_of
from edgetl.serve.protocol.open_inference import InferRequest, InputPort
from edgetl.serve.workers.batching import BATCH, best_batch
from edgetl.serve.workers.messages import Job, Result, Stages, WorkerConfig, pack, pack_result, receive_message, unpack_config, unpack_job

logger = logging.getLogger("edgetl.serve")

# Memory limits are generous: they stop a hostile network from exhausting the machine, and are no budget. For each image: a network's
# intermediate results. For each thread: decoding at the largest size, or the values of a JSON body.
IMAGE_MEMORY_BYTES = 2**28
DECODING_BYTES = 12 * MAX_PIXELS
PARSED_PER_BYTE = 20

TOO_LATE = "the request waited longer than its deadline; nothing was computed."
NO_MEMORY = "there is not enough memory for this request now; try again."


@dataclass(frozen=True)
class _Task:
    """A job whose request was parsed: when it came and the seconds that parsing took."""

    number: int
    model: int
    request: InferRequest
    deadline: float
    came: float
    parse_s: float


class _TaskQueue:
    """Queue of tasks. A thread takes tasks of one model, up to the batch size, and never waits for more.

    There is no batching window: many requests fill batches without one, and few requests would only be delayed.
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

    def run(self) -> None:
        """Until the server closes the connection."""
        config = unpack_config(receive_message(self._stream)[0])
        try:
            opened = _open_all(config)
            self._models = [predictor for _, predictor in opened]
            self._ports = [port_of(bundle.manifest, predictor.variant) for bundle, predictor in opened if predictor.variant]
            batches = [config.batch or best_batch(predictor) for predictor in self._models]
        except EdgetlError as error:
            self._send(pack({"error": type(error).__name__, "message": str(error)}))
            return
        except MemoryError:
            self._send(pack({"error": "EngineError", "message": "there is not enough memory to load the bundles."}))
            return
        waiting = _TaskQueue(batches)
        for number in range(config.threads):
            threading.Thread(target=self._work, args=(waiting,), name=f"edgetl-infer-{number}", daemon=True).start()
        self._send(pack({"models": [_describe(*pair, batch) for pair, batch in zip(opened, batches, strict=True)]}))
        # What was loaded stays; the collector need not look through it again and again.
        gc.collect()
        gc.freeze()
        while True:
            header, payload = receive_message(self._stream)
            self._receive(header["job"], unpack_job(header, payload), waiting)

    def _send(self, message: bytes) -> None:
        with self._sending, suppress(OSError):
            self._connection.sendall(message)

    def _receive(self, number: int, job: Job, waiting: _TaskQueue) -> None:
        """Parse a request; one that cannot be parsed gets its error at once."""
        came = time.monotonic()
        try:
            if came > job.deadline:
                raise RequestError(504, TOO_LATE)
            request = read_upload(job.upload, self._ports[job.model])
        except RequestError as error:
            self._send(pack_result(number, Result(status=error.status, message=str(error))))
        except MemoryError:
            self._send(pack_result(number, Result(status=503, message=NO_MEMORY)))
        except Exception:
            # A defect of edgetl: the process continues, and the request gets a 500.
            logger.exception("a worker failed on a request")
            self._failed([number])
        else:
            waiting.put(_Task(number, job.model, request, job.deadline, came, time.monotonic() - came))

    def _work(self, waiting: _TaskQueue) -> None:
        while True:
            tasks = waiting.take()
            try:
                self._respond_to(tasks)
            except Exception:
                logger.exception("a worker failed on a request")
                self._failed([task.number for task in tasks])

    def _failed(self, numbers: list[int]) -> None:
        for number in numbers:
            self._send(pack_result(number, Result(status=500, message="the server failed on this request.")))

    def _respond_to(self, tasks: list[_Task]) -> None:
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
        """The network's input, or why there is none."""
        begun = time.monotonic()
        if begun > task.deadline:
            return Result(status=504, message=TOO_LATE)
        waited = begun - task.came - task.parse_s
        if task.request.tensor is not None:
            return task.request.tensor, Stages(waited, task.parse_s)
        try:
            batch, decoding = _decoded(task.request.images, self._models[task.model])
        except ImageError as error:
            return Result(status=400, message=f"an image cannot be read: {error}")
        except MemoryError:
            return Result(status=503, message=NO_MEMORY)
        return batch, Stages(waited, task.parse_s + decoding, time.monotonic() - begun - decoding)

    def _compute(self, model: Predictor, prepared: list[tuple[_Task, Batch, Stages]]) -> None:
        begun = time.monotonic()
        try:
            together = prepared[0][1] if len(prepared) == 1 else np.concatenate([batch for _, batch, _ in prepared])
            logits = model.logits(together)
        except (EdgetlError, MemoryError):
            # Whatever is wrong with one batch, the others still go; what an engine says may hold paths, so it is not passed on.
            for task, _, stages in prepared:
                self._send(pack_result(task.number, Result(None, stages, 500, "the engine failed on this request.")))
            if not _works(model):
                # OpenVINO (2026.4) computes nothing more after it once found no memory.
                logger.error("an engine does not recover from a failure; its worker ends")
                os._exit(1)
            return
        took, start = time.monotonic() - begun, 0
        for task, batch, stages in prepared:
            rows: NDArray[np.float32] = logits[start : start + len(batch)]
            start += len(batch)
            self._send(pack_result(task.number, Result(rows, replace(stages, inference=took), response=task.request.response)))


def _decoded(images: tuple[bytes, ...], model: Predictor) -> tuple[Batch, float]:
    """The network's input, and the seconds that decoding took; one image after the other, so that only one is in memory.

    Raises:
        ImageError: one cannot be read, or all together have too many pixels.
    """
    rows: list[Batch] = []
    seconds, pixels = 0.0, 0
    for data in images:
        begun = time.monotonic()
        image = load_image(data, intensity=model.spec.intensity, formats=SERVED_FORMATS)
        seconds += time.monotonic() - begun
        pixels += image.width * image.height
        if pixels > MAX_PIXELS:
            raise ImageError(f"the images of one request may have {MAX_PIXELS} pixels together; send them one by one.")
        rows.append(to_batch([image], model.spec, model.input_form))
    together: Any = rows[0] if len(rows) == 1 else np.concatenate(rows)
    return together, seconds


def _works(model: Predictor) -> bool:
    """True if the engine still computes a black image."""
    assert model.variant is not None, "a bundle's predictor has a variant"
    shape = (1, *model.variant.input_shape(model.spec))
    try:
        model.logits(np.zeros(shape, np.uint8) if model.input_form == "uint8" else np.zeros(shape, np.float32))
    except (EdgetlError, MemoryError):
        return False
    return True


def _open_all(config: WorkerConfig) -> list[tuple[Bundle, Predictor]]:
    """Open the bundles, limit the memory of this process by their sizes, and load them."""
    bundles = [open_bundle(path) for path in config.bundles]
    variants = [choose_variant(bundle, config.variant) for bundle in bundles]
    threads, batch = config.threads, config.batch or BATCH
    one_thread = batch * IMAGE_MEMORY_BYTES + DECODING_BYTES + PARSED_PER_BYTE * config.body_bytes
    working = threads * one_thread + (threads * batch + 1) * config.body_bytes
    limit_process(memory_for(sum(variant.size_bytes for variant in variants)) + working, oom_score=500)
    return [_open(bundle, variant) for bundle, variant in zip(bundles, variants, strict=True)]


def _open(bundle: Bundle, variant: Variant) -> tuple[Bundle, Predictor]:
    """Open a bundle, verify every file, load the variant, and check its golden images."""
    for file in bundle.manifest.all_files():
        bundle.read(file)
    predictor = load(bundle, variant=variant.name, threads=1)
    check_golden(bundle, variant, predictor)
    return bundle, predictor


def _describe(bundle: Bundle, predictor: Predictor, batch: int) -> dict[str, object]:
    assert predictor.variant is not None
    return {"manifest": bundle.manifest.model_dump_json(), "variant": predictor.variant.name, "batch": batch}


def main(descriptor: str) -> None:
    """Run the worker; ``descriptor`` is the file descriptor of its end of the connection."""
    # The server decides when this process ends: a Ctrl-C reaches the whole group, and what is being computed would be lost.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(EOFError, ConnectionError):
        _WorkerProcess(socket.socket(fileno=int(descriptor))).run()
    # Without waiting for a network that may hang.
    os._exit(0)
