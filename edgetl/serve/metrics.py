"""What a server counts and times, for Prometheus; labels are names of models that exist, never what a client wrote."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from edgetl.serve.protocol.models import Models
from edgetl.serve.workers.messages import Stages

# Seconds, from a fast network alone to a request that waited.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One server's registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("edgetl_requests", "Inference requests answered", ["model", "version", "code"], registry=self.registry)
        self.rejected = Counter("edgetl_rejected", "Requests refused before inference", ["reason"], registry=self.registry)
        self.reloads = Counter("edgetl_reload", "Attempts to serve what the bundles' paths lead to now", ["result"], registry=self.registry)
        self.replaced = Counter("edgetl_workers_replaced", "Workers that died or hung", registry=self.registry)
        self.nonfinite = Counter(
            "edgetl_nonfinite_outputs", "Requests whose network output was NaN or infinite (500)", ["model"], registry=self.registry
        )
        self.malformed = Counter(
            "edgetl_malformed", "Connections cut off: no HTTP, too large or too slow", ["code"], registry=self.registry
        )
        self.workers_memory = Gauge("edgetl_workers_resident_memory_bytes", "Of the worker processes together", registry=self.registry)
        self.inside = Gauge("edgetl_inflight", "Requests between admission and answer", registry=self.registry)
        self.waiting = Gauge("edgetl_queue_depth", "Requests that no worker has taken yet", registry=self.registry)
        self.info = Gauge("edgetl_model_info", "Models that are served", ["model", "version", "variant", "run"], registry=self.registry)
        self.duration = self._seconds("edgetl_request_duration_seconds", "Whole requests")
        self.waited = self._seconds("edgetl_queue_wait_seconds", "Waiting for a worker and in it")
        self.decode = self._seconds("edgetl_decode_duration_seconds", "Decoding a request's images")
        self.preprocess = self._seconds("edgetl_preprocess_duration_seconds", "From images to the network's input")
        self.inference = self._seconds("edgetl_inference_duration_seconds", "The network")

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["model"], buckets=_BUCKETS, registry=self.registry)

    def serve(self, models: Models) -> None:
        """Say what is served from now on."""
        self.info.clear()
        for model in models.all():
            self.info.labels(model.name, model.version, model.variant_name, model.manifest.lineage.run_sha256[:12]).set(1)

    def computed(self, model: str, stages: Stages) -> None:
        """One request was computed."""
        self.waited.labels(model).observe(stages.queue)
        self.inference.labels(model).observe(stages.inference)
        if stages.decode:
            self.decode.labels(model).observe(stages.decode)
            self.preprocess.labels(model).observe(stages.preprocess)


def resident_bytes(process_ids: list[int]) -> int:
    """Memory of processes, where the system tells; what they share counts in each."""
    total = 0
    for pid in process_ids:
        with suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    return total
