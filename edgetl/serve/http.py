"""The server's routes: the Open Inference Protocol, ``POST /predict`` for people with curl, and metrics. Starlette."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as package_version

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgetl.core.answers import describe, predictions
from edgetl.errors import EngineError, ImageError, RequestError
from edgetl.serve.body import read_body
from edgetl.serve.cards import card
from edgetl.serve.lane import BusyError, Lane
from edgetl.serve.meters import Meters
from edgetl.serve.models import Model, Models
from edgetl.serve.page import page_routes
from edgetl.serve.protocol import HEADER_LENGTH, SCORES, Answered, InferRequest, Wanted, is_count, read_request, write_answer

EXTENSIONS = ["binary_tensor_data", "classification"]
RETRY_AFTER_S = 1
_TIMEOUT_HEADER = "request-timeout-ms"


@dataclass(frozen=True)
class Limits:
    """What a request may ask of the server.

    Attributes:
        max_body_bytes: also of a body once it is decompressed.
        max_batch: images in one request.
        deadline_s: a request's inference begins within this, or not at all; a client may ask for less (header ``Request-Timeout-Ms``).
        body_timeout_s: a body arrives within this.
    """

    max_body_bytes: int = 16_000_000
    max_batch: int = 16
    deadline_s: float = 10.0
    body_timeout_s: float = 30.0


class Server:
    """Models, their lane, and the routes."""

    def __init__(self, models: Models, lane: Lane, limits: Limits) -> None:
        self._models, self._lane, self._limits = models, lane, limits
        self.meters = Meters()
        self.ready = True
        for name in models.names:
            for number in models.versions(name):
                variant = models.find(name, number).predictor.variant
                self.meters.info.labels(name, number, variant.name if variant else "").set(1)

    def app(self) -> Starlette:
        """The ASGI application."""
        get = partial(Route, methods=["GET"])
        model = "/v2/models/{model}"
        routes = [
            get("/v2/health/live", self._live),
            get("/v2/health/ready", self._ready),
            get("/v2", self._server_metadata),
            get("/metrics", self._metrics),
            get("/models", self._cards),
            *page_routes(),
            Route("/predict", self._predict, methods=["POST"]),
        ]
        for prefix in (model, f"{model}/versions/{{version}}"):
            routes += [
                get(prefix, self._model_metadata),
                get(f"{prefix}/ready", self._model_ready),
                Route(f"{prefix}/infer", self._infer, methods=["POST"]),
            ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _not_found, RequestError: _refused})

    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _request: Request) -> Response:
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)

    async def _server_metadata(self, _request: Request) -> Response:
        return JSONResponse({"name": "edgetl", "version": package_version("edgetl"), "extensions": EXTENSIONS})

    async def _model_metadata(self, request: Request) -> Response:
        model = self._model(request)
        return JSONResponse(model.metadata(self._models.versions(model.name)))

    async def _model_ready(self, request: Request) -> Response:
        model = self._model(request)
        return JSONResponse({"name": model.name, "ready": self.ready}, 200 if self.ready else 503)

    async def _metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self.meters.registry), media_type=CONTENT_TYPE_LATEST)

    async def _cards(self, _request: Request) -> Response:
        """The facts of every model, the newest version of each name first; and the largest picture, for whoever is about to send one."""
        every = [self._models.find(name, number) for name in self._models.names for number in reversed(self._models.versions(name))]
        cards = [
            card(model.manifest, model.predictor.variant, self._models.versions(model.name)) for model in every if model.predictor.variant
        ]
        return JSONResponse({"models": cards, "max_body_bytes": self._limits.max_body_bytes})

    async def _infer(self, request: Request) -> Response:
        async def parse(model: Model, body: bytes) -> InferRequest:
            return read_request(body, request.headers.get(HEADER_LENGTH), model.port, max_batch=self._limits.max_batch)

        asked, answered = await self._answer(request, self._model(request), parse)
        body, header_length = write_answer(asked, answered)
        if header_length is None:
            return Response(body, media_type="application/json", headers=self._closing())
        headers = {HEADER_LENGTH: str(header_length), **self._closing()}
        return Response(body, media_type="application/octet-stream", headers=headers)

    async def _predict(self, request: Request) -> Response:
        """One encoded image as the body, for the model that ``?model=`` names or the only one."""

        async def parse(_model: Model, body: bytes) -> InferRequest:
            if not body:
                raise RequestError(400, "the body is empty; send one image: curl --data-binary @photo.jpg …/predict")
            return InferRequest("", None, (body,), (Wanted(SCORES),))

        name = request.query_params.get("model") or self._models.names[0]
        model = self._models.find(name, request.query_params.get("version"))
        _, answered = await self._answer(request, model, parse)
        reading = model.predictor.reading
        (prediction,) = predictions(reading, answered.logits)
        answer = {"model": answered.model, "version": answered.version, **describe(reading, prediction)}
        return JSONResponse(answer, headers=self._closing())

    def _closing(self) -> dict[str, str]:
        """During the drain a client is told not to send its next request on this connection, which is about to close."""
        return {} if self.ready else {"Connection": "close"}

    async def _answer(
        self, request: Request, model: Model, parse: Callable[[Model, bytes], Awaitable[InferRequest]]
    ) -> tuple[InferRequest, Answered]:
        """Admit, read, wait, infer; whatever happens is counted."""
        begin, code = time.monotonic(), 500
        deadline = begin + self._deadline_s(request)
        try:
            with self._lane.admitted(), self.meters.inside.track_inprogress():
                body = await read_body(request, max_bytes=self._limits.max_body_bytes, timeout_s=self._limits.body_timeout_s)
                asked = await parse(model, body)
                answered = await self._lane.run(lambda: self._timed(model, asked), deadline=deadline, waited=self.meters.waited.observe)
            code = 200
            return asked, answered
        except ImageError as error:
            code = 400
            raise RequestError(400, f"an image cannot be read: {error}") from error
        except EngineError as error:
            raise RequestError(500, "the engine failed on this request.") from error
        except RequestError as error:
            code = error.status
            if code in (503, 504):
                self.meters.rejected.labels("queue full" if isinstance(error, BusyError) else "deadline").inc()
            raise
        finally:
            self.meters.requests.labels(model.name, model.version, str(code)).inc()
            self.meters.duration.observe(time.monotonic() - begin)

    def _timed(self, model: Model, asked: InferRequest) -> Answered:
        with self.meters.inference.time():
            return model.answer(asked)

    def _deadline_s(self, request: Request) -> float:
        given = request.headers.get(_TIMEOUT_HEADER)
        if given is None:
            return self._limits.deadline_s
        if not is_count(given):
            raise RequestError(400, f"the header {_TIMEOUT_HEADER} takes whole milliseconds.")
        return min(self._limits.deadline_s, int(given) / 1000)

    def _model(self, request: Request) -> Model:
        return self._models.find(request.path_params["model"], request.path_params.get("version"))


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status == 503 else None
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _not_found(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "there is nothing at this address.", 405: "this address takes another method."}
    return JSONResponse({"error": said.get(error.status_code, error.detail)}, error.status_code, error.headers)
