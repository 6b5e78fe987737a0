"""Runner loop: accept a frame, predict it, deliver its record."""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from edgetl.core.files.atomic import write_text
from edgetl.core.images.decode import ImageInput, read_image_file
from edgetl.core.manifest import Manifest
from edgetl.core.output_decoding import decode, prediction_json
from edgetl.core.preprocess import Batch
from edgetl.core.results import Prediction
from edgetl.device.runner.health import Failure, Health, State
from edgetl.device.runner.model import Model
from edgetl.device.runner.sinks.record import Record, Sink
from edgetl.device.runner.sources.frame import Frame, Source
from edgetl.device.runner.systemd import Notifier
from edgetl.device.runner.waiting import POLL_S, Backoff, Stop
from edgetl.errors import EdgetlError, EngineError, ImageError, OutOfMemoryError, StorageError
from edgetl.runtime.predictor import Predictor

logger = logging.getLogger("edgetl.run")

# Interval of the health file, seconds.
HEALTH_S = 5.0
# Longest time between two signs of life, seconds.
_ALIVE_S = 20.0


class Observer(Protocol):
    """Receiver of each image with its prediction: ``edgetl.device.monitoring.monitor.Monitor``."""

    def observe(
        self,
        manifest: Manifest,
        prediction: Prediction,
        *,
        inputs: Batch | None = None,
        image: Path | bytes | NDArray[np.uint8] | None = None,
        source: str = "",
    ) -> None:
        """Take an observation. The call never waits."""


class Result(NamedTuple):
    """Prediction, and the input of the network, which a drift monitor compares."""

    prediction: Prediction
    inputs: Batch


class Runner:
    """Loop over the frames of a source.

    Args:
        model: loaded bundle or store.
        source: source of the frames.
        sinks: receivers of the records.
        stop: stop request. The frame in progress is finished.
        notifier: connection to systemd, or none.
        health: path of the health file, or none.

    Attributes:
        observer: receiver of each image with its prediction, after the record is delivered, or none.
        max_fps: largest number of accepted frames per second, or none.
        limit: number of frames after which the loop ends, or none.
        top: number of scores in a record, or none for all.
        watch: load a new bundle or active release between two frames.
    """

    def __init__(
        self,
        model: Model,
        source: Source,
        sinks: Sequence[Sink],
        *,
        stop: Stop,
        notifier: Notifier | None = None,
        health: Path | None = None,
    ) -> None:
        self._model, self._source, self._sinks, self._stop, self._health_path = model, source, sinks, stop, health
        self._notifier = notifier or Notifier({})
        self.observer: Observer | None = None
        self.max_fps: float | None = None
        self.limit: int | None = None
        self.top: int | None = None
        self.watch = False
        self._accepted = self._predicted = self._failed = self._reloads = 0
        self._state: State = "running"
        self._last_error: Failure | None = None
        self._start = self._last_alive = self._last_health = time.monotonic()
        self._counted, self._fps = 0, 0.0
        self._health_failed = False
        # Distinguishes the records of two processes.
        self._process = secrets.token_hex(4)

    def run(self, *, flush_s: float) -> Health:
        """Run until the source ends, the limit is reached, or a stop is requested. Then deliver the waiting records.

        Args:
            flush_s: time to deliver waiting records at the end, seconds.

        Returns:
            the counts of the run.

        Raises:
            DataError: the source cannot be read.
            EngineError: the engine failed. The frame has a record with the error.
            StorageError: standard output is closed, or a record could not be delivered or stored.
        """
        self._notifier.ready(self._status())
        self._write_health()
        try:
            self._loop()
        finally:
            self._notifier.stopping()
            for sink in self._sinks:
                sink.close(flush_s)
            self._state = "stopped"
            self._write_health()
        if lost := sum(sink.status().lost for sink in self._sinks):
            raise StorageError(f"{lost} records are lost: a sink did not take them before the end. Set --spool, or a longer --flush-s.")
        return self.health()

    def _loop(self) -> None:
        interval, due = 1 / self.max_fps if self.max_fps else 0.0, time.monotonic()
        with closing(self._source.frames()) as frames:
            for frame in frames:
                self._state = "waiting for the source" if self._source.problem else "running"
                if frame is not None:
                    self._handle(frame)
                self._tick()
                if self._stop.requested or self._accepted == self.limit:
                    break
                if frame is not None and interval:
                    # After a late frame, at most one frame is early.
                    due = max(due, time.monotonic() - interval) + interval
                    self._wait(due - time.monotonic())

    def _handle(self, frame: Frame) -> None:
        """Predict an accepted frame and deliver its record."""
        self._accepted += 1
        accepted, start = _utc_now(), time.perf_counter()
        image, result = frame.image, None
        outcome: dict[str, JsonValue]
        problem: EdgetlError | None = None
        try:
            if frame.path is not None and self.observer is not None:
                image = read_image_file(frame.path)  # the observer may keep it later, when the file is gone
            result = self._predict(image)
            outcome = {**self._scores(result.prediction), "ms": round(1000 * (time.perf_counter() - start), 3)}
            self._predicted += 1
        except (ImageError, OutOfMemoryError, EngineError) as error:
            problem, outcome = error, {"error": str(error)}
            self._fail(str(error))
            self._failed += 1
        manifest = self._model.manifest
        identity = {"id": f"{self._process}-{self._accepted}", "time": accepted, "image": frame.name}
        gallery: dict[str, JsonValue] = {"gallery": self._model.gallery} if self._model.gallery else {}
        self._deliver(Record({**identity, "model": manifest.name, "release": manifest.release, **gallery, **outcome}))
        if result is not None and self.observer is not None and not isinstance(image, ImageError):
            self.observer.observe(manifest, result.prediction, inputs=result.inputs, image=image, source=frame.name)
        self._source.finish(frame)
        if isinstance(problem, EngineError):
            raise problem  # every further frame would fail too: a supervisor starts the process again

    def _predict(self, image: Path | bytes | NDArray[np.uint8] | ImageError) -> Result:
        """Predict an image. If the engine fails and the store has rolled back, predict it with the previous release.

        Raises:
            ImageError: the image cannot be read.
            EngineError: the engine failed.
            OutOfMemoryError: there is too little memory.
        """
        if isinstance(image, ImageError):
            raise image
        try:
            return _predict(self._model.predictor, image)
        except EngineError as error:
            if not self._model.refresh(now=True):
                raise
            self._reloads += 1
            self._fail(str(error))
            return _predict(self._model.predictor, image)

    def _scores(self, prediction: Prediction) -> dict[str, JsonValue]:
        values = prediction_json(self._model.predictor.decoding, prediction)
        scores = values["scores"]
        if self.top is not None and isinstance(scores, dict):
            values["scores"] = dict(sorted(scores.items(), key=lambda item: -item[1])[: self.top])
        return values  # type: ignore[return-value]  # plain JSON values

    def _deliver(self, record: Record) -> None:
        """Give the record to every sink. While a sink cannot take it, wait with back-off: no further frame is accepted."""
        for sink in self._sinks:
            backoff = Backoff(longest_s=5.0)
            while not sink.put(record):
                status = sink.status()
                reason = status.problem or "its queue is full"
                if self._stop.requested:
                    raise StorageError(
                        f"the record of {record.values['image']} is lost, because {status.name} took no records before the end: {reason}. "
                        f"Check the sink, or set --spool and --spool-mb."
                    )
                if self._state != "waiting for a sink":
                    self._state = "waiting for a sink"
                    self._fail(f"{status.name} takes no records: {reason}")
                    logger.warning("%s takes no records: %s. No frame is accepted until it does.", status.name, reason)
                self._wait(backoff.next())
            self._state = "running"

    def _wait(self, seconds: float) -> None:
        """Wait, but continue to report. A stop request ends the wait."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stop.requested:
            self._stop.wait(min(left, POLL_S))
            self._tick()

    def _tick(self) -> None:
        """Report a sign of life, write the health file and load a new bundle, if it is time."""
        now = time.monotonic()
        if now - self._last_health >= HEALTH_S:
            self._write_health()
        if now - self._last_alive >= min(_ALIVE_S, (self._notifier.watchdog_s or _ALIVE_S) / 3):
            self._last_alive = now
            self._notifier.alive(self._status())
        if self.watch or self._model.is_rolled_back:
            try:
                self._reloads += self._model.refresh()
            except EdgetlError as error:
                self._fail(str(error))
                logger.error("the new bundle was not loaded, and the present one stays: %s", error)

    def _fail(self, message: str) -> None:
        self._last_error = Failure(time=_utc_now(), message=message)

    def _status(self) -> str:
        return (
            f"{self._state}: {self._model.name}, {self._accepted} frames, {self._failed} unreadable, {self._source.dropped} dropped, "
            f"{self._fps:.1f} per second"
        )

    def health(self) -> Health:
        """Return the present state and counts."""
        return Health(
            time=_utc_now(),
            pid=os.getpid(),
            state=self._state,
            uptime_s=round(time.monotonic() - self._start, 1),
            model=self._model.manifest.name,
            release=self._model.manifest.release,
            variant=self._model.variant,
            gallery=self._model.gallery,
            source=self._source.name,
            accepted=self._accepted,
            predicted=self._predicted,
            failed=self._failed,
            dropped=self._source.dropped,
            missing=self._source.missing,
            fps=round(self._fps, 2),
            reloads=self._reloads,
            sinks=tuple(sink.status() for sink in self._sinks),
            last_error=self._last_error,
        )

    def _write_health(self) -> None:
        now = time.monotonic()
        if (passed := now - self._last_health) > 0:
            self._fps = (self._accepted - self._counted) / passed
        self._counted, self._last_health = self._accepted, now
        if self._source.problem:
            self._fail(self._source.problem)
        if self._health_path is None:
            return
        try:
            write_text(self._health_path, self.health().model_dump_json(indent=2) + "\n")
            self._health_failed = False
        except StorageError as error:
            if not self._health_failed:
                logger.error("the health file was not written: %s", error)
            self._health_failed = True


def _predict(predictor: Predictor, image: ImageInput) -> Result:
    inputs = predictor.prepare(predictor.read(image))
    (prediction,) = decode(predictor.decoding, predictor.logits(inputs))
    if not math.isfinite(sum(prediction.scores)):
        raise EngineError("the model returned a score that is not a number. Use another variant, or export the bundle again.")
    return Result(prediction, inputs)


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
