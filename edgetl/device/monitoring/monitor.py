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

from edgetl.core.files.names import printable
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
from edgetl.errors import ConfigError, EdgetlError, StorageError

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
COUNTS = (
    "observed",
    "dropped",
    "drift",
    "drift_events",
    *(f"captured_{reason}" for reason in REASONS),
    "capture_failed",
    "capture_deleted",
    "capture_bytes",
    "events_failed",
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
    kept_bytes: int

    def statistics(self) -> NDArray[np.float32] | None:
        """Return the image statistics, float32 ``[7]``; none without inputs."""
        if self.inputs is None:
            return None
        values = np.asarray(self.inputs)
        return image_statistics(values, self.manifest.preprocess)[0] if values.ndim == 4 else values.astype(np.float32)


@dataclass
class _Model:
    """State of one release of a model: detector, folder, next times (monotonic), and counts."""

    manifest: Manifest
    detector: DriftDetector | None
    folder: CaptureFolder | None
    next_drift: float = 0.0
    next_capture: float = 0.0
    total: Counter[str] = field(default_factory=Counter)
    unwritten: Counter[str] = field(default_factory=Counter)

    def count(self, name: str) -> None:
        """Increase a count by 1."""
        self.total[name] += 1
        self.unwritten[name] += 1


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
        self._models: dict[tuple[str, int], _Model] = {}
        self._folders: dict[tuple[str, tuple[str, ...]], CaptureFolder] = {}
        self._creating = threading.Lock()
        self._queue: queue.Queue[_Observation | None] = queue.Queue(MAX_WAITING)
        # ``observe`` takes this lock, which protects the two counts only.
        self._counting = threading.Lock()
        self._waiting_bytes = 0
        self._dropped: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._work, name="edgetl-monitor", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def add(self, manifest: Manifest) -> None:
        """Add a model before its first prediction, to find mistakes at the start. ``observe`` adds other models.

        Raises:
            ConfigError: ``drift`` is set, and the bundle has no monitoring reference. The message has the reason.
            StorageError: the folder for captured images cannot be written.
        """
        if self._config.drift and manifest.reference is None:
            raise ConfigError(f"{manifest.name}, release {manifest.release}: {_no_reference(manifest)}")
        with self._creating:
            self._models[manifest.name, manifest.release] = _Model(manifest, self._detector(manifest), self._folder(manifest))

    def observe(
        self,
        manifest: Manifest,
        prediction: Prediction,
        *,
        inputs: Batch | NDArray[np.float32] | Sequence[float] | None = None,
        image: Observed | None = None,
        source: str = "",
        kept_bytes: int = 0,
    ) -> None:
        """Observe the prediction of one image. The call never blocks: if the monitor is busy, the observation is dropped and counted.

        Args:
            manifest: manifest of the bundle that made the prediction.
            prediction: prediction of the image.
            inputs: input of the network, as ``Predictor.prepare`` returns it (one image), or its ``image_statistics``. None compares only
                the predictions. The array must not change afterwards.
            image: image to keep if it is worth labeling: its path, its encoded bytes, a decoded RGB image (PIL, or uint8 ``[H, W, 3]``), or
                a function that returns encoded bytes. Only captured images are read. None captures nothing.
            source: origin of the image for the table, such as a file name or a camera.
            kept_bytes: memory that an image given as a function keeps, bytes.
        """
        size = kept_bytes + _size(image) + (inputs.nbytes if isinstance(inputs, np.ndarray) else 0)
        with self._counting:
            fits = self._waiting_bytes + size <= MAX_WAITING_BYTES
            self._waiting_bytes += size
        with suppress(queue.Full):
            if fits:
                self._queue.put_nowait(_Observation(manifest, prediction, inputs, image, source, size))
                return
        with self._counting:
            self._waiting_bytes -= size
            self._dropped[manifest.name] += 1

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the counts since the start, by the name of the model.

        - ``observed``, ``dropped``: predictions that were processed, or dropped because the monitor was busy.
        - ``drift``: 1 during drift of the newest release, else 0. ``drift_events``: starts of drift.
        - ``captured_drift``, ``captured_uncertain``, ``captured_sample``: captured images by reason.
        - ``capture_failed``, ``capture_deleted``: images that were not captured, or were deleted for the budget.
        - ``capture_bytes``: used part of the budget, bytes.
        - ``events_failed``: events and counts that were not written, for instance on a full disk.
        """
        found: dict[str, dict[str, int]] = {}
        for (name, _), model in sorted(self._models.copy().items(), key=lambda item: item[0]):
            counts = found.setdefault(name, dict.fromkeys(COUNTS, 0))
            for key, value in model.total.copy().items():
                counts[key] += value
            counts["dropped"] = self._dropped[name]
            counts["drift"] = int(model.detector is not None and model.detector.drifted)
            if model.folder is not None:
                counts["capture_bytes"], counts["capture_deleted"] = model.folder.used_bytes, model.folder.deleted
        return found

    def close(self) -> None:
        """Process the waiting observations for at most five seconds, write the counts, and close the file of the events."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSE_S)
        self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        flush_at, running = time.monotonic() + _FLUSH_S, True
        while running:
            item: _Observation | _Idle | None = _Idle.IDLE
            with suppress(queue.Empty):
                item = self._queue.get(timeout=_FLUSH_S)
            running = item is not None
            try:
                if isinstance(item, _Observation):
                    with self._counting:
                        self._waiting_bytes -= item.kept_bytes
                    self._process(item)
                if not running or time.monotonic() >= flush_at:
                    flush_at = time.monotonic() + _FLUSH_S
                    self._write_counts()
            except Exception:
                # A bug in edgetl. The thread continues, because a device runs for years.
                logger.exception("internal error of the monitor")
        if self._events is not None:
            self._events.close()

    def _process(self, item: _Observation) -> None:
        now, model = time.monotonic(), self._model(item.manifest)
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

    def _reason(self, model: _Model, prediction: Prediction) -> Reason | None:
        if model.detector is not None and model.detector.drifted:
            return "drift"
        if is_uncertain(prediction, model.manifest.decoding, self._config.capture_below):
            return "uncertain"
        return "sample" if self._random.random() < self._config.capture_rate else None

    def _capture(self, model: _Model, item: _Observation, reason: Reason) -> None:
        assert model.folder is not None and item.image is not None
        facts = Captured(item.prediction, reason, timestamp(), item.manifest.release, printable(item.source))
        try:
            if model.folder.save(_encoded(item.image, item.manifest), facts):
                model.count(f"captured_{reason}")
        except (EdgetlError, OSError) as error:
            # For instance a full disk, or a file that was moved. The next attempt is later, so that the log stays short.
            model.next_capture = time.monotonic() + max(_PAUSE_S, self._config.capture_interval_s)
            model.count("capture_failed")
            logger.warning("an image was not captured: %s", error)

    def _report(self, model: _Model, event: DriftEvent) -> None:
        name, release, images = model.manifest.name, model.manifest.release, model.manifest.monitored_images
        if event.kind == "drift":
            model.count("drift_events")
            shown = ", ".join(f"{change.name} {change.value:.2f} (limit {change.limit:.2f})" for change in event.changes[:3])
            logger.warning("drift: the last %d images of %s differ from its %s: %s", event.window, name, images, shown)
        else:
            logger.info("end of drift: the last %d images of %s do not differ from its %s", event.window, name, images)
        detail = {"window": event.window, "changes": [asdict(change) for change in event.changes[:MAX_CHANGES]]}
        if self._events is not None and not self._events.add(Event(timestamp(), name, release, event.kind, detail)):
            model.count("events_failed")

    def _write_counts(self) -> None:
        for (name, release), model in self._models.copy().items():
            if self._events is not None and model.unwritten:
                if self._events.count(name, release, model.unwritten):
                    model.unwritten.clear()
                else:
                    model.total["events_failed"] += 1

    def _model(self, manifest: Manifest) -> _Model:
        """Return the state of a model. A new model without a reference or a folder is observed without it."""
        key = manifest.name, manifest.release
        with self._creating:
            if key not in self._models:
                if self._config.drift and manifest.reference is None:
                    logger.warning("%s, release %d: %s", *key, _no_reference(manifest))
                folder = None
                try:
                    folder = self._folder(manifest)
                except StorageError as error:
                    logger.warning("no images are captured: %s", error)
                self._models[key] = _Model(manifest, self._detector(manifest), folder)
            return self._models[key]

    def _detector(self, manifest: Manifest) -> DriftDetector | None:
        if not self._config.drift or manifest.reference is None:
            return None
        return DriftDetector(manifest.reference, manifest.decoding, window=self._config.drift_window)

    def _folder(self, manifest: Manifest) -> CaptureFolder | None:
        """Return the folder for captured images, which the releases of a model share."""
        if self._config.capture is None:
            return None
        key = manifest.name, manifest.labels
        if key not in self._folders:
            max_bytes = int(self._config.capture_mb * 1e6)
            self._folders[key] = CaptureFolder(self._config.capture, manifest.name, manifest.decoding, max_bytes=max_bytes)
        return self._folders[key]


def _size(image: Observed | None) -> int:
    """Return the memory that an image keeps, bytes."""
    if isinstance(image, Image.Image):
        return 3 * image.width * image.height
    return len(image) if isinstance(image, bytes) else image.nbytes if isinstance(image, np.ndarray) else 0


def _no_reference(manifest: Manifest) -> str:
    n, images = manifest.target.n if manifest.target else manifest.trained.n, manifest.monitored_images
    if n < LEAST_IMAGES:
        return (
            f"the bundle has no monitoring reference, because it was exported with {n} {images} (fewer than {LEAST_IMAGES}). "
            f"Add {'training images' if manifest.folds else images} and export again, or omit --drift."
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
