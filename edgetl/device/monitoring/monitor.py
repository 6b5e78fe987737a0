"""Monitor: observes predictions in a thread of its own, detects drift, captures images, and records events.

``observe`` puts an observation into a queue of limited length and returns. If the queue is full, the observation is dropped and counted.
"""

from __future__ import annotations

import io
import logging
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.files.regular import read_plain
from edgetl.core.images.decode import MAX_FILE_BYTES, load_image
from edgetl.core.manifest import Manifest
from edgetl.core.preprocess import Batch
from edgetl.core.reference import LEAST_IMAGES, image_statistics
from edgetl.core.results import Prediction
from edgetl.device.monitoring.capture import REASONS, Captured, CaptureFolder, Reason, is_uncertain
from edgetl.device.monitoring.config import MonitorConfig
from edgetl.device.monitoring.drift import DriftDetector, DriftEvent
from edgetl.device.monitoring.events import Event, EventLog, timestamp
from edgetl.errors import ConfigError, EdgetlError

logger = logging.getLogger("edgetl.monitor")

# Observed image: a path, encoded bytes, a decoded image or frame, or a function that returns encoded bytes.
Observed: TypeAlias = Path | bytes | Image.Image | NDArray[np.uint8] | Callable[[], bytes]

# Limits of waiting observations. Each may hold an image.
MAX_WAITING = 256
MAX_WAITING_BYTES = 64_000_000
JPEG_QUALITY = 95
# Changes in the detail of an event.
MAX_CHANGES = 10
# Interval of writing counts, seconds.
_FLUSH_S = 10.0
# Pause of the capture after a failure such as a full disk, seconds.
_PAUSE_S = 60.0
_CLOSE_S = 5.0
_COUNTS = (
    "observed",
    "drift",
    "drift_events",
    *(f"captured_{reason}" for reason in REASONS),
    "capture_failed",
    "capture_deleted",
    "capture_bytes",
)


class _Idle(Enum):
    """Nothing to process."""

    IDLE = 0


@dataclass(frozen=True)
class _Observation:
    manifest: Manifest
    prediction: Prediction
    inputs: Batch | NDArray[np.float32] | Sequence[float] | None
    image: Observed | None
    source: str
    size_bytes: int

    def statistics(self) -> NDArray[np.float32] | None:
        """Return the image statistics, float32 ``[6]``; none without inputs."""
        if self.inputs is None:
            return None
        values = np.asarray(self.inputs)
        return image_statistics(values, self.manifest.preprocess)[0] if values.ndim == 4 else values.astype(np.float32)


@dataclass
class _Watched:
    """State of one model: its detector and folder, next times (monotonic), and counts."""

    manifest: Manifest
    detector: DriftDetector | None
    folder: CaptureFolder | None
    next_drift: float = 0.0
    next_capture: float = 0.0
    total: Counter[str] = field(default_factory=Counter)
    unwritten: Counter[str] = field(default_factory=Counter)

    def count(self, name: str, number: int = 1) -> None:
        """Increase a count."""
        self.total[name] += number
        self.unwritten[name] += number


class Monitor:
    """Monitor of one process: any number of models, one thread.

    Methods may be called from any thread. Close the monitor, or use it as a context manager, to write the last counts.

    Args:
        config: options.
        seed: seed of the random sample.
    """

    def __init__(self, config: MonitorConfig, *, seed: int | None = None) -> None:
        """
        Raises:
            StorageError: the file of the events cannot be opened.
        """
        self._config = config
        self._random = random.Random(seed)
        self._events = EventLog(config.events_file) if config.events_file else None
        self._models: dict[tuple[str, int], _Watched] = {}
        self._queue: queue.Queue[_Observation | None] = queue.Queue(MAX_WAITING)
        self._waiting_bytes, self._dropped = 0, 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="edgetl-monitor", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def add(self, manifest: Manifest) -> None:
        """Add a model before its first prediction. A model that is not added is added by its first observation.

        Raises:
            ConfigError: ``drift`` is set, and the bundle has no monitoring reference. The message has the reason.
            StorageError: the folder for captured images cannot be written.
        """
        if self._config.drift and manifest.reference is None:
            raise ConfigError(f"{manifest.name}, release {manifest.release}: {_no_reference(manifest)}")
        self._watch(manifest)

    def observe(
        self,
        manifest: Manifest,
        prediction: Prediction,
        *,
        inputs: Batch | NDArray[np.float32] | Sequence[float] | None = None,
        image: Observed | None = None,
        source: str = "",
    ) -> None:
        """Observe the prediction of one image. The call never blocks: if the monitor is busy, the observation is dropped and counted.

        Args:
            manifest: manifest of the bundle that made the prediction.
            prediction: prediction of the image.
            inputs: input of the network, as ``Predictor.prepare`` returns it (one image), or the six values of ``image_statistics``.
                None compares only the predictions. The array must not change afterwards.
            image: image to keep if it is worth labeling: its path, its encoded bytes, a decoded RGB image (PIL, or uint8 ``[H, W, 3]``), or
                a function that returns encoded bytes. Only captured images are read. None captures nothing.
            source: origin of the image for the table, such as a file name or a camera.
        """
        size = len(image) if isinstance(image, bytes) else image.nbytes if isinstance(image, np.ndarray) else 0
        if isinstance(image, Image.Image):
            size = 3 * image.width * image.height
        size += inputs.nbytes if isinstance(inputs, np.ndarray) else 0
        with self._lock:
            full = self._waiting_bytes + size > MAX_WAITING_BYTES
            self._waiting_bytes += 0 if full else size
        try:
            if full:
                raise queue.Full
            self._queue.put_nowait(_Observation(manifest, prediction, inputs, image, source, size))
        except queue.Full:
            with self._lock:
                self._dropped += 1
                self._waiting_bytes -= 0 if full else size

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the counts since the start, by the name of the model; the monitor's own counts have an empty name.

        Model: ``observed``, ``drift`` (1 during drift, else 0), ``drift_events``, ``captured_drift``, ``captured_uncertain``,
        ``captured_sample``, ``capture_failed``, ``capture_deleted``, ``capture_bytes``. Monitor: ``dropped`` observations, ``failed``
        writes to the file of the events.
        """
        found: dict[str, dict[str, int]] = {"": {"dropped": self._dropped, "failed": self._events.failed if self._events else 0}}
        for (name, _), model in sorted(self._models.copy().items()):
            # The newest release of a model, and the counts of all its releases.
            current = found.setdefault(name, dict.fromkeys(_COUNTS, 0))
            for key, value in model.total.items():
                current[key] += value
            current["drift"] = int(model.detector is not None and model.detector.drifted)
            if model.folder is not None:
                current["capture_bytes"], current["capture_deleted"] = model.folder.used_bytes, model.folder.deleted
        return found

    def close(self) -> None:
        """Process the waiting observations for at most five seconds, write the counts, and close the file of the events."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSE_S)
        self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        flush_at = time.monotonic() + _FLUSH_S
        running = True
        while running:
            item: _Observation | _Idle | None = _Idle.IDLE
            with suppress(queue.Empty):
                item = self._queue.get(timeout=_FLUSH_S)
            try:
                if isinstance(item, _Observation):
                    with self._lock:
                        self._waiting_bytes -= item.size_bytes
                    self._process(item)
                if item is None or time.monotonic() >= flush_at:
                    flush_at = time.monotonic() + _FLUSH_S
                    self._write_counts()
            except Exception:
                # A bug in edgetl. The thread continues, because a device runs for years.
                logger.exception("internal error of the monitor")
            running = item is not None
        if self._events is not None:
            self._events.close()

    def _process(self, item: _Observation) -> None:
        now, model = time.monotonic(), self._watch(item.manifest)
        model.count("observed")
        if model.detector is not None and now >= model.next_drift:
            model.next_drift = now + self._config.drift_interval_s
            if event := model.detector.add(item.prediction, item.statistics()):
                self._report(model, event)
        if model.folder is not None and item.image is not None and now >= model.next_capture:
            reason = self._reason(model, item.prediction)
            if reason is not None:
                model.next_capture = now + self._config.capture_interval_s
                self._capture(model, item, reason)

    def _reason(self, model: _Watched, prediction: Prediction) -> Reason | None:
        if model.detector is not None and model.detector.drifted:
            return "drift"
        if is_uncertain(prediction, model.manifest.decoding, self._config.capture_below):
            return "uncertain"
        return "sample" if self._random.random() < self._config.capture_rate else None

    def _capture(self, model: _Watched, item: _Observation, reason: Reason) -> None:
        assert model.folder is not None and item.image is not None
        facts = Captured(item.prediction, reason, timestamp(), item.source)
        try:
            if model.folder.save(_encoded(item.image, item.manifest), facts):
                model.count(f"captured_{reason}")
        except (EdgetlError, OSError) as error:
            # For instance a full disk, or a file that was moved. The next attempt is later, so that the log stays short.
            model.next_capture = time.monotonic() + max(_PAUSE_S, self._config.capture_interval_s)
            model.count("capture_failed")
            logger.warning("an image was not captured: %s", error)

    def _report(self, model: _Watched, event: DriftEvent) -> None:
        name, release = model.manifest.name, model.manifest.release
        if event.kind == "drift":
            model.count("drift_events")
            shown = ", ".join(f"{change.name} {change.value:.2f} (limit {change.limit:.2f})" for change in event.changes[:3])
            logger.warning("drift: the last %d images of %s differ from its validation images: %s", event.window, name, shown)
        else:
            logger.info("end of drift: the last %d images of %s do not differ from its validation images", event.window, name)
        if self._events is not None:
            detail = {"window": event.window, "changes": [asdict(change) for change in event.changes[:MAX_CHANGES]]}
            self._events.add(Event(timestamp(), name, release, event.kind, detail))

    def _write_counts(self) -> None:
        for (name, release), model in self._models.items():
            if self._events is not None and model.unwritten and self._events.count(name, release, model.unwritten):
                model.unwritten.clear()

    def _watch(self, manifest: Manifest) -> _Watched:
        """Return the state of a model, and create it at its first observation."""
        key = manifest.name, manifest.release
        with self._lock:
            if key not in self._models:
                self._models[key] = self._create(manifest)
            return self._models[key]

    def _create(self, manifest: Manifest) -> _Watched:
        config, reference = self._config, manifest.reference
        detector = DriftDetector(reference, manifest.decoding, window=config.drift_window) if config.drift and reference else None
        if config.drift and reference is None:
            logger.warning("%s, release %d: %s", manifest.name, manifest.release, _no_reference(manifest))
        folder = CaptureFolder(config.capture, manifest, max_bytes=int(config.capture_mb * 1e6)) if config.capture else None
        return _Watched(manifest, detector, folder)


def _no_reference(manifest: Manifest) -> str:
    n = manifest.trained.n
    if n < LEAST_IMAGES:
        return (
            f"the bundle has no monitoring reference, because it was exported with {n} validation images (fewer than {LEAST_IMAGES}). "
            f"Add validation images and export again, or omit --drift."
        )
    return "the bundle has no monitoring reference. Export the run again with this version of edgetl, or omit --drift."


def _encoded(image: Observed, manifest: Manifest) -> bytes:
    """Return the encoded image. Decoded images are written as JPEG.

    Raises:
        OSError: the file cannot be read.
        ImageError: the frame is not an image.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return read_plain(image, max_bytes=MAX_FILE_BYTES)
    if isinstance(image, Image.Image | np.ndarray):
        buffer = io.BytesIO()
        load_image(image, intensity=manifest.preprocess.intensity).save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()
    return image()
