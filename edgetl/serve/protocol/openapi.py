"""OpenAPI 3.1 document of the server, with the names and input shapes of its models."""

from __future__ import annotations

from typing import Any

from edgetl.serve.protocol.models import Models
from edgetl.serve.protocol.open_inference import LOGITS, MAX_ID_CHARACTERS, MAX_OUTPUTS, SCORES

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_ERROR: Json = {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}
_DESCRIPTIONS = {
    "400": "The request is invalid. The message names the mistake.",
    "401": "The server requires a token, and the request has no valid token.",
    "404": "The model or version does not exist.",
    "408": "The body arrived too slowly.",
    "413": "The body is too large, before or after decompression.",
    "415": "The Content-Encoding is not supported.",
    "500": "The engine failed, the worker process crashed, or the model output is not finite.",
    "503": "The request queue is full, or the server is not ready. Try again after Retry-After seconds.",
    "504": "The deadline passed before the computation began.",
}
_INFERENCE_ERRORS = ("400", "401", "404", "408", "413", "415", "500", "503", "504")


def _parameter(name: str, location: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": location, "required": False, "schema": schema, "description": description}


_TIMEOUT_MS: Json = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
_HEADERS = [
    _parameter(
        "Request-Timeout-Ms",
        "header",
        _TIMEOUT_MS,
        "Deadline of the computation, milliseconds after the request. A request that waits longer gets 504.",
    ),
    _parameter(
        "X-Request-Id", "header", {"type": "string", "pattern": "^[!-~]{1,128}$"}, "Request id. The response and the access log contain it."
    ),
]


def document(models: Models, version: str) -> Json:
    """Return the OpenAPI document."""
    cards = _get(
        "Model cards: accuracy, latency, size, license and signature of every model.",
        {"models": {"type": "array", "items": {"type": "object"}}},
    )
    cards["get"]["responses"] |= _errors("503")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgetl",
            "version": version,
            "description": "Image models over HTTP: the Open Inference Protocol (KServe v2), and POST /predict for single images.",
        },
        "security": [{}, {"token": []}],
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/v2/health/live": _get("Liveness: the server process runs.", {"live": {"type": "boolean"}}, is_public=True),
            "/v2/health/ready": _get(
                "Readiness: the server accepts requests. Otherwise `reason` may state why no release of a store can be served.",
                {"ready": {"type": "boolean"}},
                "503",
                is_public=True,
            ),
            "/v2": _get(
                "Server metadata: name, version, extensions.",
                {"name": _TEXT, "version": _TEXT, "extensions": {"type": "array", "items": _TEXT}},
            ),
            "/metrics": {
                "get": {"summary": "Prometheus metrics.", "responses": {"200": _content("text/plain", _TEXT, "Text."), **_errors("401")}}
            },
            "/models": cards,
            "/predict": {"post": _predict(models)},
            **_model_paths(models),
        },
    }


def _get(summary: str, properties: Json, *error_codes: str, is_public: bool = False) -> Json:
    body = {"type": "object", "properties": properties, "required": sorted(properties)}
    failures = {code: _content("application/json", body, "Not ready. The value is false.") for code in error_codes}
    errors = {} if is_public else _errors("401")
    return {"get": {"summary": summary, "responses": {"200": _content("application/json", body, "OK."), **failures, **errors}}}


def _content(media_type: str, schema: Json, description: str) -> Json:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _errors(*codes: str) -> Json:
    return {code: _content("application/json", _ERROR, _DESCRIPTIONS[code]) for code in codes}


def _predict(models: Models) -> Json:
    image: Json = {"type": "string", "contentMediaType": "image/jpeg"}
    upload: Json = {"image": {"type": "string", "contentMediaType": "application/octet-stream"}}
    form: Json = {"type": "object", "properties": upload, "required": ["image"]}
    number: Json = {"type": "number"}
    names: Json = {
        "model": {"enum": models.names},
        "version": _TEXT,
        "gallery": _TEXT,
        "label": {"type": ["string", "null"]},
        "labels": {"type": "array", "items": _TEXT},
    }
    numbers: Json = {"score": number, "value": number, "scores": {"type": "object", "additionalProperties": number}}
    prediction: Json = {"type": "object", "properties": names | numbers, "required": ["model", "version", "scores"]}
    query = [
        _parameter("model", "query", {"enum": models.names}, "Model name. Default: the first bundle."),
        _parameter("version", "query", {"enum": _versions(models)}, "Release. Default: the newest."),
    ]
    return {
        "summary": "Prediction for one image, which is the body or the only file of a form.",
        "parameters": [*query, *_HEADERS],
        "requestBody": {"required": True, "content": {"image/jpeg": {"schema": image}, "multipart/form-data": {"schema": form}}},
        "responses": {
            "200": _content("application/json", prediction, "The prediction and the scores of all labels."),
            **_errors(*_INFERENCE_ERRORS),
        },
    }


def _versions(models: Models) -> list[str]:
    return sorted({version for name in models.names for version in models.versions(name)}, key=int)


def _model_paths(models: Models) -> Json:
    """Return the paths of the protocol. Their parameters list the served models and versions."""
    paths: Json = {}
    name = {"name": "model", "in": "path", "required": True, "schema": {"enum": models.names}}
    version = {"name": "version", "in": "path", "required": True, "schema": {"enum": _versions(models)}}
    tensors: Json = {"type": "array", "items": {"type": "object"}}
    metadata = {"name": _TEXT, "versions": {"type": "array", "items": _TEXT}, "platform": _TEXT, "inputs": tensors, "outputs": tensors}
    for path, parameters in (("/v2/models/{model}", [name]), ("/v2/models/{model}/versions/{version}", [name, version])):
        model = _get("Model metadata: inputs, outputs, labels.", metadata)
        model["get"]["responses"] |= _errors("404", "503")
        paths[path] = {**model, "parameters": parameters}
        ready = _get("Readiness of a model: the server accepts requests for it.", {"name": _TEXT, "ready": {"type": "boolean"}}, "503")
        ready["get"]["responses"] |= _errors("404")
        paths[f"{path}/ready"] = {**ready, "parameters": parameters}
        paths[f"{path}/infer"] = {"post": _infer(models), "parameters": parameters}
    return paths


def _infer(models: Models) -> Json:
    outputs: Json = {"type": "array", "items": {"type": "object", "required": ["name", "datatype", "shape"]}}
    prediction: Json = {
        "type": "object",
        "properties": {"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "parameters": {"type": "object"}, "outputs": outputs},
        "required": ["model_name", "model_version", "outputs"],
    }
    ok = _content("application/json", prediction, "The outputs. Binary outputs follow the JSON.")
    ok["content"]["application/octet-stream"] = {"schema": _TEXT}
    return {
        "summary": "Inference on a tensor, or on encoded images as BYTES.",
        "description": "The header Inference-Header-Content-Length states the length of the JSON, bytes. Binary tensors follow the JSON.",
        "parameters": _HEADERS,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _request(models)}}},
        "responses": {"200": ok, **_errors(*_INFERENCE_ERRORS)},
    }


def _request(models: Models) -> Json:
    ports = [model.port for model in models.all()]
    datatypes = sorted({"BYTES", *(port.datatype for port in ports)})
    tensor: Json = {
        "type": "object",
        "properties": {
            "name": {"enum": sorted({port.name for port in ports})},
            "datatype": {"enum": datatypes},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 8},
            "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer", "minimum": 0}}},
            "data": {"type": "array", "description": "Numbers, flat or nested. For BYTES: images in base64."},
        },
        "required": ["name", "datatype", "shape"],
        "examples": [{"name": port.name, "datatype": port.datatype, "shape": [1, *port.shape], "data": []} for port in ports[:1]],
    }
    requested: Json = {
        "type": "object",
        "properties": {
            "name": {"enum": [SCORES, LOGITS]},
            "parameters": {
                "type": "object",
                "properties": {
                    "classification": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
                    "binary_data": {"type": "boolean"},
                },
            },
        },
        "required": ["name"],
    }
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string", "maxLength": MAX_ID_CHARACTERS},
            "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": requested, "minItems": 1, "maxItems": MAX_OUTPUTS},
        },
        "required": ["inputs"],
    }
