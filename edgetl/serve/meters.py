"""What a server counts and times, for Prometheus; labels are names of models that exist, never what a client wrote."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Seconds, from a fast network alone to a request that waited.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Meters:
    """One server's registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("edgetl_requests", "Inference requests answered", ["model", "version", "code"], registry=self.registry)
        self.rejected = Counter("edgetl_rejected", "Requests refused before inference", ["reason"], registry=self.registry)
        self.inside = Gauge("edgetl_inflight", "Requests between admission and answer", registry=self.registry)
        self.duration = Histogram("edgetl_request_duration_seconds", "Whole requests", buckets=_BUCKETS, registry=self.registry)
        self.waited = Histogram("edgetl_queue_wait_seconds", "Waiting for a thread", buckets=_BUCKETS, registry=self.registry)
        self.inference = Histogram(
            "edgetl_inference_duration_seconds", "Decoding, preparing and the network", buckets=_BUCKETS, registry=self.registry
        )
        self.info = Gauge("edgetl_model_info", "Models that are served", ["model", "version", "variant"], registry=self.registry)
