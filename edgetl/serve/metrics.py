"""Prometheus metrics of the server.

Label values are names of served models, never text from a client. Clients therefore cannot add time series.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from edgetl.core.manifest import Manifest
from edgetl.core.results import Prediction
from edgetl.serve.protocol.models import Models
from edgetl.serve.workers.messages import Stages

# Histogram buckets, seconds: from one inference of a fast network to a request that waited in the queue.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Monitor(Protocol):
    """Observer of predictions, for drift detection and capture. ``edgetl.device.monitoring.monitor.Monitor`` is one."""

    def add(self, manifest: Manifest) -> None:
        """Add a model before the first request.

        Raises:
            EdgetlError: the model cannot be monitored.
        """

    def observe(
        self,
        manifest: Manifest,
        prediction: Prediction,
        *,
        inputs: Sequence[float] | None,
        image: Callable[[], bytes] | None,
        source: str,
        kept_bytes: int,
    ) -> None:
        """Observe the prediction of one image. The call never blocks.

        ``inputs`` has the image statistics, ``image`` returns the encoded image, and ``kept_bytes`` is the memory that it keeps.
        """

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Return the counts since the start by model and name (``_MONITOR_COUNTERS``, ``drift``, ``capture_bytes``, ``captured_*``)."""


# Counts of a monitor: name in ``Monitor.counts``, metric and help text.
_MONITOR_COUNTERS = {
    "observed": ("edgetl_monitor_observed", "Predictions that --drift and --capture observed"),
    "dropped": ("edgetl_monitor_dropped", "Predictions that --drift and --capture did not observe, because they were busy"),
    "drift_events": ("edgetl_drift_events", "Starts of drift"),
    "capture_failed": ("edgetl_capture_failed", "Images that were not captured, for instance because the disk is full"),
    "capture_deleted": ("edgetl_capture_deleted", "Captured images that were deleted to keep the disk budget"),
    "events_failed": ("edgetl_events_failed", "Events and daily counts that were not written, for instance because the disk is full"),
}


class Metrics:
    """Metrics of one server, with a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "edgetl_requests", "Inference requests by status code", ["model", "version", "code"], registry=self.registry
        )
        self.rejected = Counter(
            "edgetl_rejected", "Requests rejected before inference: queue full (503) or deadline (504)", ["reason"], registry=self.registry
        )
        self.reloads = Counter("edgetl_reload", "Reloads of the bundles by result: done or refused", ["result"], registry=self.registry)
        self.workers_replaced = Counter(
            "edgetl_workers_replaced", "Worker processes replaced after a crash or a hang", registry=self.registry
        )
        self.nonfinite = Counter(
            "edgetl_nonfinite_outputs", "Requests with NaN or infinite model outputs (status 500)", ["model"], registry=self.registry
        )
        self.malformed = Counter(
            "edgetl_malformed", "Malformed requests by status code: invalid HTTP, too large, too slow", ["code"], registry=self.registry
        )
        self.workers_memory = Gauge(
            "edgetl_workers_resident_memory_bytes", "Resident memory of all worker processes, bytes", registry=self.registry
        )
        self.inflight = Gauge("edgetl_inflight", "Admitted requests without a response yet", registry=self.registry)
        self.queue_depth = Gauge("edgetl_queue_depth", "Requests that wait for a worker", registry=self.registry)
        self.model_info = Gauge(
            "edgetl_model_info", "Served models; the value is always 1", ["model", "version", "variant", "run"], registry=self.registry
        )
        self.duration = self._histogram("edgetl_request_duration_seconds", "Duration of a request, from its head to the result")
        self.queue_wait = self._histogram("edgetl_queue_wait_seconds", "Waiting time in the queues of the server and of the worker")
        self.decode = self._histogram("edgetl_decode_duration_seconds", "Parsing of the request and decoding of its images")
        self.preprocess = self._histogram("edgetl_preprocess_duration_seconds", "Preprocessing: resize, crop and normalization")
        self.inference = self._histogram("edgetl_inference_duration_seconds", "Inference: one run of the model")
        self.drift = Gauge("edgetl_drift", "1 if the last images differ from the validation images", ["model"], registry=self.registry)
        self.captured = Counter(
            "edgetl_captured", "Captured images by reason: drift, uncertain or sample", ["model", "reason"], registry=self.registry
        )
        self.capture_bytes = Gauge("edgetl_capture_bytes", "Disk space of the captured images, bytes", ["model"], registry=self.registry)
        self.monitor = {key: Counter(*text, ["model"], registry=self.registry) for key, text in _MONITOR_COUNTERS.items()}
        self._monitored: dict[tuple[str, str], int] = {}

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["model"], buckets=_BUCKETS, registry=self.registry)

    def set_models(self, models: Models) -> None:
        """Set ``edgetl_model_info`` to these models."""
        self.model_info.clear()
        for model in models.all():
            self.model_info.labels(model.name, model.version, model.variant_name, model.manifest.lineage.run_sha256[:12]).set(1)

    def set_monitor(self, monitored: Mapping[str, Mapping[str, int]]) -> None:
        """Set the metrics of a monitor to its counts (``Monitor.counts``)."""
        for model, counts in monitored.items():
            self.drift.labels(model).set(counts["drift"])
            self.capture_bytes.labels(model).set(counts["capture_bytes"])
            for name, value in counts.items():
                step = value - self._monitored.get((model, name), 0)
                if name in self.monitor:
                    self.monitor[name].labels(model).inc(step)
                elif name.startswith("captured_"):
                    self.captured.labels(model, name.removeprefix("captured_")).inc(step)
                self._monitored[model, name] = value

    def observe_stages(self, model: str, stages: Stages) -> None:
        """Record the durations of one computed request."""
        self.queue_wait.labels(model).observe(stages.queue)
        self.inference.labels(model).observe(stages.inference)
        if stages.decode:
            self.decode.labels(model).observe(stages.decode)
            self.preprocess.labels(model).observe(stages.preprocess)


def resident_bytes(process_ids: list[int]) -> int:
    """Return the resident memory of processes, bytes, from Linux's ``/proc``. Shared memory counts in each process."""
    total = 0
    for pid in process_ids:
        with suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    return total
