"""Routes of the server (Starlette): Open Inference Protocol, ``POST /predict``, metrics, web page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version as package_version

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgetl.core.output_decoding import decode, prediction_json
from edgetl.errors import RequestError
from edgetl.serve.config import ServeConfig
from edgetl.serve.connections.rejection import BUSY, RETRY_AFTER_S
from edgetl.serve.metrics import Metrics, Monitor, resident_bytes
from edgetl.serve.page import page_routes
from edgetl.serve.protocol.body import BodyReader, content_encoding
from edgetl.serve.protocol.content import Upload, read_upload
from edgetl.serve.protocol.models import Model
from edgetl.serve.protocol.open_inference import HEADER_LENGTH, ResponseSpec, is_count, write_response
from edgetl.serve.protocol.openapi import document
from edgetl.serve.service import Service
from edgetl.serve.workers.messages import Job, Result, Stages
from edgetl.serve.workers.pool import DeadlineError, WorkerPool

EXTENSIONS = ["binary_tensor_data", "classification"]
_TIMEOUT_HEADER = "request-timeout-ms"
# Limit of images per request.
_MAX_BATCH = 16
# Time limit for a request body, seconds. ``protocol.body`` also requires a minimum rate.
_BODY_TIMEOUT_S = 30.0


class BusyError(RequestError):
    """503: the request queue is full."""

    def __init__(self) -> None:
        super().__init__(503, BUSY)


@dataclass(frozen=True)
class _Inference:
    """Result of one inference request, with the ``Server-Timing`` header."""

    response: ResponseSpec
    model: Model
    logits: NDArray[np.float32]
    headers: dict[str, str]


class Server:
    """Routes of the server, and admission of requests."""

    def __init__(self, service: Service, config: ServeConfig, monitor: Monitor | None = None) -> None:
        self._service, self._config, self._monitor = service, config, monitor
        self._inflight = 0
        # Arriving bodies may take as much memory as admitted requests.
        max_total_bytes = config.max_requests(config.worker_threads()) * config.max_body_bytes
        self._bodies = BodyReader(max_bytes=config.max_body_bytes, max_total_bytes=max_total_bytes, timeout_s=_BODY_TIMEOUT_S)
        self.metrics = Metrics()
        self.metrics.set_models(service.pool.models)
        self.metrics.inflight.set_function(lambda: self._inflight)
        self.metrics.queue_depth.set_function(lambda: service.pool.waiting)
        self.metrics.workers_memory.set_function(lambda: resident_bytes(service.pool.process_ids))
        service.on_replaced = self.metrics.workers_replaced.inc
        service.on_reload = self._count_reload
        self.draining = False

    @property
    def is_full(self) -> bool:
        """True if no further request can be admitted."""
        return self._inflight >= self._service.max_requests

    @property
    def ready(self) -> bool:
        """True if the server can compute requests and is not shutting down."""
        return not self.draining and self._service.pool.ready

    def app(self) -> Starlette:
        """Return the application with all routes."""
        get = partial(Route, methods=["GET"])
        model = "/v2/models/{model}"
        routes = [
            get("/v2/health/live", self._live),
            get("/v2/health/ready", self._ready),
            get("/v2", self._server_metadata),
            get("/metrics", self._metrics),
            get("/models", self._cards),
            get("/openapi.json", self._openapi),
            *page_routes(),
            Route("/predict", self._predict, methods=["POST"]),
        ]
        for prefix in (model, f"{model}/versions/{{version}}"):
            routes += [
                get(prefix, self._model_metadata),
                get(f"{prefix}/ready", self._model_ready),
                Route(f"{prefix}/infer", self._infer, methods=["POST"]),
            ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _not_found, RequestError: _error_response})
        # A redirect would repeat the client's Host header, which may be forged.
        app.router.redirect_slashes = False
        return app

    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _request: Request) -> Response:
        # The response needs no token. If there is one, it contains nothing about a store.
        reason = {"reason": self._service.problem} if self._service.problem and self._config.token_file is None else {}
        return JSONResponse({"ready": self.ready, **reason}, 200 if self.ready else 503)

    async def _server_metadata(self, _request: Request) -> Response:
        return JSONResponse({"name": "edgetl", "version": package_version("edgetl"), "extensions": EXTENSIONS})

    async def _model_metadata(self, request: Request) -> Response:
        model = self._requested_model(request)
        return JSONResponse(model.metadata(self._service.models.versions(model.name)))

    async def _model_ready(self, request: Request) -> Response:
        name = request.path_params["model"] if self._service.problem else self._requested_model(request).name
        return JSONResponse({"name": name, "ready": self.ready}, 200 if self.ready else 503)

    def _requested_model(self, request: Request) -> Model:
        return self._service.models.find(request.path_params["model"], request.path_params.get("version"))

    async def _metrics(self, _request: Request) -> Response:
        if self._monitor is not None:
            self.metrics.set_monitor(self._monitor.counts())
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _cards(self, _request: Request) -> Response:
        return JSONResponse({"models": self._service.cards(), "max_body_bytes": self._config.max_body_bytes})

    async def _openapi(self, _request: Request) -> Response:
        return JSONResponse(document(self._service.pool.models, package_version("edgetl")))

    async def _infer(self, request: Request) -> Response:
        result = await self._respond_to(request, "infer", request.path_params["model"], request.path_params.get("version"))
        body, header_length = write_response(result.response, result.model.outputs(result.logits))
        if header_length is None:
            return Response(body, media_type="application/json", headers=result.headers)
        return Response(body, media_type="application/octet-stream", headers={HEADER_LENGTH: str(header_length), **result.headers})

    async def _predict(self, request: Request) -> Response:
        """Predict one encoded image, which is the body or the only file of a form. ``?model=`` selects a model (default: the first)."""
        name = request.query_params.get("model") or self._service.models.names[0]
        result = await self._respond_to(request, "predict", name, request.query_params.get("version"))
        decoding = result.model.decoding
        (prediction,) = decode(decoding, result.logits)
        identity = {"model": result.model.name, "version": result.model.version, **result.model.identity()}
        body = {**identity, **prediction_json(decoding, prediction)}
        return JSONResponse(body, headers=result.headers)

    async def _respond_to(self, request: Request, endpoint: str, name: str, version: str | None) -> _Inference:
        """Read a request, run it in a worker, and record its metrics."""
        start, code = time.monotonic(), 500
        with self._service.acquire() as pool:
            model = pool.models.find(name, version)
            try:
                outcome, upload, arrived_at = await self._compute(request, endpoint, pool, model)
                self._service.record(pool, model, outcome)
                if outcome.logits is None:
                    raise DeadlineError if outcome.status == 504 else RequestError(outcome.status, outcome.message)
                if not np.isfinite(outcome.logits).all():
                    self.metrics.nonfinite.labels(model.name).inc()
                    raise RequestError(500, "the model output is not finite (NaN or infinite), so there is no prediction.")
                code, end = 200, time.monotonic()
                stages = replace(outcome.stages, queue=max(0.0, end - arrived_at - outcome.stages.computing))
                self.metrics.observe_stages(model.name, stages)
                self._observe(model, upload, outcome)
                return _Inference(outcome.response, model, outcome.logits, self._timing_headers(stages, end - start))
            except RequestError as error:
                code = error.status
                if isinstance(error, BusyError | DeadlineError):
                    self.metrics.rejected.labels("queue full" if isinstance(error, BusyError) else "deadline").inc()
                raise
            finally:
                self.metrics.requests.labels(model.name, model.version, str(code)).inc()
                self.metrics.duration.labels(model.name).observe(time.monotonic() - start)

    def _observe(self, model: Model, upload: Upload, result: Result) -> None:
        """Pass the predictions of a request to the monitor. It reads the images only if it captures them."""
        if self._monitor is None or result.logits is None:
            return
        for index, prediction in enumerate(decode(model.decoding, result.logits)):
            self._monitor.observe(
                model.manifest,
                prediction,
                inputs=result.image_statistics[index] if result.image_statistics else None,
                image=partial(_encoded_image, upload, model, index) if result.encoded else None,
                source="http",
                kept_bytes=len(upload.body),
            )

    async def _compute(self, request: Request, endpoint: str, pool: WorkerPool, model: Model) -> tuple[Result, Upload, float]:
        """Return the worker's result, the body and its arrival time. Parsing in the worker keeps the event loop responsive."""
        deadline = time.monotonic() + self._deadline_s(request)
        if self.is_full:
            raise BusyError
        headers = content_encoding(request), request.headers.get("content-type", ""), request.headers.get(HEADER_LENGTH)
        body = await self._bodies.read(request)
        upload = Upload(body, endpoint, *headers, self._config.max_body_bytes, _MAX_BATCH)
        arrived_at = time.monotonic()
        with self._admitted():
            return await pool.run(Job(pool.models.index(model), upload, deadline)), upload, arrived_at

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Count a request as admitted, from its complete body to its result."""
        if self.is_full:
            raise BusyError
        self._inflight += 1
        try:
            yield
        finally:
            self._inflight -= 1

    @staticmethod
    def _timing_headers(stages: Stages, total: float) -> dict[str, str]:
        """Return the ``Server-Timing`` header with the duration of each stage, milliseconds (W3C Server Timing)."""
        parts = {"queue": stages.queue, "decode": stages.decode, "preprocess": stages.preprocess, "inference": stages.inference}
        timing = ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in {**parts, "total": total}.items())
        return {"Server-Timing": timing}

    def _deadline_s(self, request: Request) -> float:
        value = request.headers.get(_TIMEOUT_HEADER)
        if value is None:
            return self._config.deadline_s
        if not is_count(value):
            raise RequestError(400, f"the header {_TIMEOUT_HEADER} must be a whole number of milliseconds.")
        return min(self._config.deadline_s, int(value) / 1000)

    def _count_reload(self, result: str) -> None:
        self.metrics.reloads.labels(result).inc()
        self.metrics.set_models(self._service.pool.models)


def _encoded_image(upload: Upload, model: Model, index: int) -> bytes:
    """Return an image of a request that a worker has already read."""
    return read_upload(upload, model.port).images[index]


async def _error_response(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status == 503 else {}
    if error.status in (408, 413):
        # The server does not read the rest of the body.
        headers["Connection"] = "close"
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _not_found(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "there is no such path. GET /openapi.json lists the paths.", 405: "this path does not support the method."}
    return JSONResponse({"error": messages.get(error.status_code, error.detail)}, error.status_code, error.headers)
