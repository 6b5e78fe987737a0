"""A worker process: loads bundles, proves that they answer as on the bench, and computes what the server sends, until the server goes.

It is a process of its own so that a network that crashes, hangs or eats the memory ends this process and not the server. The server reads
what clients wrote; nothing of a client reaches this process but numbers and encoded images.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.images import MAX_PIXELS, SERVED_FORMATS, load_image
from edgetl.core.preprocess import Batch, to_batch
from edgetl.errors import EdgetlError, ImageError
from edgetl.runtime.predictor import Predictor, load
from edgetl.runtime.verify import check_golden
from edgetl.serve.batching import best_batch
from edgetl.serve.frames import Done, Job, Stages, pack, pack_done, receive_frame, unpack_job


class _Waiting:
    """Jobs in the order that they came; whoever takes gets as many of one model as its batch allows, and never waits for more.

    There is no window: where requests are many there is always more, and where they are few a window only delays them.
    """

    def __init__(self, batches: list[int]) -> None:
        self._jobs: deque[tuple[int, Job, float]] = deque()
        self._arrived = threading.Condition()
        self._batches = batches

    def put(self, number: int, job: Job) -> None:
        with self._arrived:
            self._jobs.append((number, job, time.monotonic()))
            self._arrived.notify()

    def take(self) -> list[tuple[int, Job, float]]:
        with self._arrived:
            while not self._jobs:
                self._arrived.wait()
            taken = [self._jobs.popleft()]
            model, images = taken[0][1].model, _count(taken[0][1])
            while self._jobs and self._jobs[0][1].model == model:
                images += _count(self._jobs[0][1])
                if images > self._batches[model]:
                    break
                taken.append(self._jobs.popleft())
            return taken


def _count(job: Job) -> int:
    return len(job.images) if job.tensor is None else len(job.tensor)


class _Process:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = open(connection.fileno(), "rb", buffering=1 << 18, closefd=False)  # noqa: SIM115 - as long as the process
        self._sending = threading.Lock()
        self._models: list[Predictor] = []

    def run(self) -> None:
        """Until the server closes the connection."""
        order, _ = receive_frame(self._stream)
        try:
            opened = [_open(Path(path), order["variant"]) for path in order["bundles"]]
        except EdgetlError as error:
            self._send(pack({"error": type(error).__name__, "said": str(error)}))
            return
        except MemoryError:
            self._send(pack({"error": "EngineError", "said": "there is not enough memory to load the bundles."}))
            return
        self._models = [predictor for _, predictor in opened]
        batches = [order["batch"] or best_batch(predictor) for predictor in self._models]
        waiting = _Waiting(batches)
        for number in range(order["threads"]):
            threading.Thread(target=self._work, args=(waiting,), name=f"edgetl-infer-{number}", daemon=True).start()
        self._send(pack({"models": [_facts(*pair, batch) for pair, batch in zip(opened, batches, strict=True)]}))
        # What was loaded stays; the collector need not look through it again and again.
        gc.collect()
        gc.freeze()
        while True:
            header, payload = receive_frame(self._stream)
            waiting.put(header["job"], unpack_job(header, payload))

    def _send(self, frame: bytes) -> None:
        with self._sending, suppress(OSError):
            self._connection.sendall(frame)

    def _work(self, waiting: _Waiting) -> None:
        while True:
            jobs = waiting.take()
            try:
                self._answer(jobs)
            except Exception:
                # A defect of ours; the thread goes on, and whoever waits is told.
                logging.getLogger("edgetl.serve").exception("a worker failed on a request")
                for number, _, _ in jobs:
                    self._send(pack_done(number, Done(status=500, said="the server failed on this request.")))

    def _answer(self, jobs: list[tuple[int, Job, float]]) -> None:
        prepared = []
        for number, job, came in jobs:
            ready = self._prepare(job, came)
            if isinstance(ready, Done):
                self._send(pack_done(number, ready))
            else:
                prepared.append((number, *ready))
        if prepared:
            self._compute(self._models[jobs[0][1].model], prepared)

    def _prepare(self, job: Job, came: float) -> Done | tuple[Batch, Stages]:
        """The network's input, or why there is none."""
        begun = time.monotonic()
        if begun > job.deadline:
            return Done(status=504, said="the request waited longer than its deadline; nothing was computed.")
        if job.tensor is not None:
            return job.tensor, Stages(begun - came)
        model = self._models[job.model]
        try:
            batch, decoding = _decoded(job.images, model)
        except ImageError as error:
            return Done(status=400, said=f"an image cannot be read: {error}")
        except MemoryError:
            return Done(status=503, said="there is not enough memory for this request now; try again.")
        return batch, Stages(begun - came, decoding, time.monotonic() - begun - decoding)

    def _compute(self, model: Predictor, prepared: list[tuple[int, Batch, Stages]]) -> None:
        begun = time.monotonic()
        try:
            together = prepared[0][1] if len(prepared) == 1 else np.concatenate([batch for _, batch, _ in prepared])
            logits = model.logits(together)
        except (EdgetlError, MemoryError):
            # Whatever is wrong with one batch, the others still go; what an engine says may hold paths, so it is not passed on.
            for number, _, stages in prepared:
                self._send(pack_done(number, Done(None, stages, 500, "the engine failed on this request.")))
            return
        took, start = time.monotonic() - begun, 0
        for number, batch, stages in prepared:
            rows: NDArray[np.float32] = logits[start : start + len(batch)]
            start += len(batch)
            self._send(pack_done(number, Done(rows, replace(stages, inference=took))))


def _decoded(images: tuple[bytes, ...], model: Predictor) -> tuple[Batch, float]:
    """The network's input, and the seconds that decoding took; one image after the other, so that only one is in memory.

    Raises:
        ImageError: one cannot be read, or all together have too many pixels.
    """
    rows: list[Batch] = []
    seconds, pixels = 0.0, 0
    for data in images:
        begun = time.monotonic()
        image = load_image(data, formats=SERVED_FORMATS)
        seconds += time.monotonic() - begun
        pixels += image.width * image.height
        if pixels > MAX_PIXELS:
            raise ImageError(f"the images of one request may have {MAX_PIXELS} pixels together; send them one by one.")
        rows.append(to_batch([image], model.spec, model.input_form))
    together: Any = rows[0] if len(rows) == 1 else np.concatenate(rows)
    return together, seconds


def _open(path: Path, variant: str | None) -> tuple[Bundle, Predictor]:
    """A bundle whose every file is what its manifest says, and the variant that answers its golden images as on the bench."""
    bundle = open_bundle(path)
    for file in bundle.manifest.all_files():
        bundle.read(file)
    predictor = load(bundle, variant=variant, threads=1)
    assert predictor.variant is not None, "a bundle's predictor has a variant"
    check_golden(bundle, predictor.variant, predictor)
    return bundle, predictor


def _facts(bundle: Bundle, predictor: Predictor, batch: int) -> dict[str, object]:
    assert predictor.variant is not None
    return {"manifest": bundle.manifest.model_dump_json(), "variant": predictor.variant.name, "batch": batch}


def main(descriptor: int) -> None:
    """The process: ``descriptor`` is its end of the connection."""
    # The server decides when this process ends: a Ctrl-C reaches the whole group, and what is being computed would be lost.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        # Where memory runs out, the system ends this process, which is replaced, and not the server.
        Path("/proc/self/oom_score_adj").write_text("500")
    with suppress(EOFError, ConnectionError):
        _Process(socket.socket(fileno=descriptor)).run()
    # Without waiting for a network that may hang.
    os._exit(0)
