"""Prometheus metrics of the server.

Label values are names of served models, never text from a client. Clients therefore cannot add time series.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from edgetl.serve.protocol.models import Models
from edgetl.serve.workers.messages import Stages

# Histogram buckets, seconds: from one inference of a fast network to a request that waited in the queue.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


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

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["model"], buckets=_BUCKETS, registry=self.registry)

    def set_models(self, models: Models) -> None:
        """Set ``edgetl_model_info`` to these models."""
        self.model_info.clear()
        for model in models.all():
            self.model_info.labels(model.name, model.version, model.variant_name, model.manifest.lineage.run_sha256[:12]).set(1)

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
