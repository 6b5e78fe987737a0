"""The server's routes: the Open Inference Protocol, ``POST /predict`` for people with curl, and metrics. Starlette."""

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
from edgetl.serve.metrics import Metrics, resident_bytes
from edgetl.serve.model_cards import cards
from edgetl.serve.page import page_routes
from edgetl.serve.protocol.body import Bodies, content_encoding
from edgetl.serve.protocol.content import Upload
from edgetl.serve.protocol.models import Model
from edgetl.serve.protocol.open_inference import HEADER_LENGTH, ResponseSpec, is_count, write_response
from edgetl.serve.protocol.openapi import document
from edgetl.serve.service import Service
from edgetl.serve.workers.messages import Job, Result, Stages
from edgetl.serve.workers.pool import DeadlineError, WorkerPool

EXTENSIONS = ["binary_tensor_data", "classification"]
_TIMEOUT_HEADER = "request-timeout-ms"
# Images of one request.
_MAX_BATCH = 16
# A body arrives within this, and at a minimum rate (``protocol.body``).
_BODY_TIMEOUT_S = 30.0


class BusyError(RequestError):
    """503: as many requests are inside as may be."""

    def __init__(self) -> None:
        super().__init__(503, BUSY)


@dataclass(frozen=True)
class _Inference:
    """One request's answer, and how long it took."""

    response: ResponseSpec
    model: Model
    logits: NDArray[np.float32]
    headers: dict[str, str]


class Server:
    """Routes to a service, and the admission of requests."""

    def __init__(self, service: Service, config: ServeConfig) -> None:
        self._service, self._config = service, config
        self._inside = 0
        # As much memory as the requests that are inside may hold.
        together = config.max_requests * config.max_body_bytes
        self._bodies = Bodies(max_bytes=config.max_body_bytes, together=together, timeout_s=_BODY_TIMEOUT_S)
        self.metrics = Metrics()
        self.metrics.serve(service.pool.models)
        self.metrics.inside.set_function(lambda: self._inside)
        self.metrics.waiting.set_function(lambda: service.pool.waiting)
        self.metrics.workers_memory.set_function(lambda: resident_bytes(service.pool.process_ids))
        service.on_replaced = self.metrics.replaced.inc
        service.on_reload = self._reloaded
        self.draining = False

    @property
    def full(self) -> bool:
        """True if the limit of requests inside is reached."""
        return self._inside >= self._config.max_requests

    @property
    def ready(self) -> bool:
        """Whether to send requests here."""
        return not self.draining and self._service.pool.ready

    def app(self) -> Starlette:
        """The routes."""
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
        app = Starlette(routes=routes, exception_handlers={HTTPException: _not_found, RequestError: _refused})
        # An address is what it is; a redirect would repeat the Host that a client invented.
        app.router.redirect_slashes = False
        return app

    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _request: Request) -> Response:
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)

    async def _server_metadata(self, _request: Request) -> Response:
        return JSONResponse({"name": "edgetl", "version": package_version("edgetl"), "extensions": EXTENSIONS})

    async def _model_metadata(self, request: Request) -> Response:
        model = self._named(request)
        return JSONResponse(model.metadata(self._service.pool.models.versions(model.name)))

    async def _model_ready(self, request: Request) -> Response:
        model = self._named(request)
        return JSONResponse({"name": model.name, "ready": self.ready}, 200 if self.ready else 503)

    def _named(self, request: Request) -> Model:
        return self._service.pool.models.find(request.path_params["model"], request.path_params.get("version"))

    async def _metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _cards(self, _request: Request) -> Response:
        return JSONResponse({"models": cards(self._service.pool.models), "max_body_bytes": self._config.max_body_bytes})

    async def _openapi(self, _request: Request) -> Response:
        return JSONResponse(document(self._service.pool.models, package_version("edgetl")))

    async def _infer(self, request: Request) -> Response:
        found = await self._respond_to(request, "infer", request.path_params["model"], request.path_params.get("version"))
        body, header_length = write_response(found.response, found.model.outputs(found.logits))
        if header_length is None:
            return Response(body, media_type="application/json", headers=found.headers)
        return Response(body, media_type="application/octet-stream", headers={HEADER_LENGTH: str(header_length), **found.headers})

    async def _predict(self, request: Request) -> Response:
        """One encoded image, as the body or as the only file of a form, for the model that ``?model=`` names or the first."""
        name = request.query_params.get("model") or self._service.pool.models.names[0]
        found = await self._respond_to(request, "predict", name, request.query_params.get("version"))
        decoding = found.model.decoding
        (prediction,) = decode(decoding, found.logits)
        answer = {"model": found.model.name, "version": found.model.version, **prediction_json(decoding, prediction)}
        return JSONResponse(answer, headers=found.headers)

    async def _respond_to(self, request: Request, endpoint: str, name: str, version: str | None) -> _Inference:
        """Read, admit, wait, compute; whatever happens is counted."""
        begin, code = time.monotonic(), 500
        with self._service.acquire() as pool:
            model = pool.models.find(name, version)
            try:
                done, arrived = await self._computed(request, endpoint, pool, model)
                if done.logits is None:
                    raise DeadlineError if done.status == 504 else RequestError(done.status, done.message)
                if not np.isfinite(done.logits).all():
                    self.metrics.nonfinite.labels(model.name).inc()
                    raise RequestError(
                        500, "the network's output has values that are not finite (NaN or infinite), so there is no prediction."
                    )
                code, end = 200, time.monotonic()
                stages = replace(done.stages, queue=max(0.0, end - arrived - done.stages.computing))
                self.metrics.computed(model.name, stages)
                return _Inference(done.response, model, done.logits, self._headers(stages, end - begin))
            except RequestError as error:
                code = error.status
                if isinstance(error, BusyError | DeadlineError):
                    self.metrics.rejected.labels("queue full" if isinstance(error, BusyError) else "deadline").inc()
                raise
            finally:
                self.metrics.requests.labels(model.name, model.version, str(code)).inc()
                self.metrics.duration.labels(model.name).observe(time.monotonic() - begin)

    async def _computed(self, request: Request, endpoint: str, pool: WorkerPool, model: Model) -> tuple[Result, float]:
        """The worker's answer, and when the body was complete. The body is not parsed here: that would block every other request."""
        deadline = time.monotonic() + self._deadline_s(request)
        if self.full:
            raise BusyError
        headers = content_encoding(request), request.headers.get("content-type", ""), request.headers.get(HEADER_LENGTH)
        body = await self._bodies.read(request)
        upload = Upload(body, endpoint, *headers, self._config.max_body_bytes, _MAX_BATCH)
        arrived = time.monotonic()
        with self._admitted():
            return await pool.run(Job(pool.models.place(model), upload, deadline)), arrived

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """A place, from when the body is complete until the answer is there."""
        if self.full:
            raise BusyError
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @staticmethod
    def _headers(stages: Stages, whole: float) -> dict[str, str]:
        """Durations of the stages (W3C Server Timing)."""
        parts = {"queue": stages.queue, "decode": stages.decode, "preprocess": stages.preprocess, "inference": stages.inference}
        timing = ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in {**parts, "total": whole}.items())
        return {"Server-Timing": timing}

    def _deadline_s(self, request: Request) -> float:
        given = request.headers.get(_TIMEOUT_HEADER)
        if given is None:
            return self._config.deadline_s
        if not is_count(given):
            raise RequestError(400, f"the header {_TIMEOUT_HEADER} takes whole milliseconds.")
        return min(self._config.deadline_s, int(given) / 1000)

    def _reloaded(self, result: str) -> None:
        self.metrics.reloads.labels(result).inc()
        self.metrics.serve(self._service.pool.models)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status == 503 else {}
    if error.status in (408, 413):
        # The rest of the body is not read.
        headers["Connection"] = "close"
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _not_found(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "there is nothing at this address.", 405: "this address takes another method."}
    return JSONResponse({"error": said.get(error.status_code, error.detail)}, error.status_code, error.headers)
