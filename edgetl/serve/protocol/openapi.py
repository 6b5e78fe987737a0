"""OpenAPI 3.1 document of the server, with the names, shapes and labels of its models."""

from __future__ import annotations

from typing import Any

from edgetl.serve.protocol.models import Models
from edgetl.serve.protocol.open_inference import LOGITS, MAX_ID_CHARACTERS, MAX_OUTPUTS, SCORES

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_ERROR: Json = {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}
_DESCRIPTIONS = {
    "400": "The request cannot be understood; the text says why.",
    "401": "The server has a token, and the request has not.",
    "404": "There is no such model or version.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large, perhaps once it is decompressed.",
    "415": "The body is compressed in a way that is not known.",
    "500": "The engine failed on this request, or the process that computed it died.",
    "503": "Too many requests wait, or the server is not ready; try again after Retry-After seconds.",
    "504": "The request waited longer than its deadline; nothing was computed.",
}
_OF_WORK = ("400", "401", "404", "408", "413", "415", "500", "503", "504")


def _parameter(name: str, place: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": place, "required": False, "schema": schema, "description": description}


_TIMEOUT_MS: Json = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
_HEADERS = [
    _parameter("Request-Timeout-Ms", "header", _TIMEOUT_MS, "Longest wait. A request that waited longer gets 504 and is not computed."),
    _parameter(
        "X-Request-Id", "header", {"type": "string", "pattern": "^[!-~]{1,128}$"}, "Request id, in the response and the access log."
    ),
]


def document(models: Models, version: str) -> Json:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgetl",
            "version": version,
            "description": "Image models over HTTP: the Open Inference Protocol (KServe v2), and one address for people with curl.",
        },
        "security": [{}, {"token": []}],
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/v2/health/live": _get("Liveness: the process runs.", {"live": {"type": "boolean"}}, open_to_all=True),
            "/v2/health/ready": _get("Readiness: requests can be sent.", {"ready": {"type": "boolean"}}, "503", open_to_all=True),
            "/v2": _get("The server.", {"name": _TEXT, "version": _TEXT, "extensions": {"type": "array", "items": _TEXT}}),
            "/metrics": {
                "get": {"summary": "Prometheus metrics.", "responses": {"200": _content("text/plain", _TEXT, "Text."), **_errors("401")}}
            },
            "/models": _get("Every model's figures, size and license.", {"models": {"type": "array", "items": {"type": "object"}}}),
            "/predict": {"post": _predict(models)},
            **_of_models(models),
        },
    }


def _get(summary: str, properties: Json, *also: str, open_to_all: bool = False) -> Json:
    body = {"type": "object", "properties": properties, "required": sorted(properties)}
    wrong = {code: _content("application/json", body, "The same, and false.") for code in also}
    errors = {} if open_to_all else _errors("401")
    return {"get": {"summary": summary, "responses": {"200": _content("application/json", body, "Yes."), **wrong, **errors}}}


def _content(kind: str, schema: Json, description: str) -> Json:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _errors(*codes: str) -> Json:
    return {code: _content("application/json", _ERROR, _DESCRIPTIONS[code]) for code in codes}


def _predict(models: Models) -> Json:
    image: Json = {"type": "string", "contentMediaType": "image/jpeg"}
    upload: Json = {"image": {"type": "string", "contentMediaType": "application/octet-stream"}}
    form: Json = {"type": "object", "properties": upload, "required": ["image"]}
    number: Json = {"type": "number"}
    names: Json = {"model": {"enum": models.names}, "version": _TEXT, "label": _TEXT, "labels": {"type": "array", "items": _TEXT}}
    numbers: Json = {"score": number, "value": number, "scores": {"type": "object", "additionalProperties": number}}
    answer: Json = {"type": "object", "properties": names | numbers, "required": ["model", "version", "scores"]}
    query = [
        _parameter("model", "query", {"enum": models.names}, "Default: the first."),
        _parameter("version", "query", {"enum": _versions(models)}, "Default: the newest."),
    ]
    return {
        "summary": "The answer to one image: the body itself, or the only file of a form.",
        "parameters": [*query, *_HEADERS],
        "requestBody": {"required": True, "content": {"image/jpeg": {"schema": image}, "multipart/form-data": {"schema": form}}},
        "responses": {"200": _content("application/json", answer, "The answer, and every score."), **_errors(*_OF_WORK)},
    }


def _versions(models: Models) -> list[str]:
    return sorted({version for name in models.names for version in models.versions(name)}, key=int)


def _of_models(models: Models) -> Json:
    """The protocol's addresses, the models' names being the only ones that they take."""
    paths: Json = {}
    name = {"name": "model", "in": "path", "required": True, "schema": {"enum": models.names}}
    number = {"name": "version", "in": "path", "required": True, "schema": {"enum": _versions(models)}}
    tensors: Json = {"type": "array", "items": {"type": "object"}}
    metadata = {"name": _TEXT, "versions": {"type": "array", "items": _TEXT}, "platform": _TEXT, "inputs": tensors, "outputs": tensors}
    for path, parameters in (("/v2/models/{model}", [name]), ("/v2/models/{model}/versions/{version}", [name, number])):
        said = _get("A model: its input, outputs and labels.", metadata)
        said["get"]["responses"] |= _errors("404")
        paths[path] = {**said, "parameters": parameters}
        ready = _get("Should requests for this model be sent here?", {"name": _TEXT, "ready": {"type": "boolean"}}, "503")
        ready["get"]["responses"] |= _errors("404")
        paths[f"{path}/ready"] = {**ready, "parameters": parameters}
        paths[f"{path}/infer"] = {"post": _infer(models), "parameters": parameters}
    return paths


def _infer(models: Models) -> Json:
    outputs: Json = {"type": "array", "items": {"type": "object", "required": ["name", "datatype", "shape"]}}
    answer: Json = {
        "type": "object",
        "properties": {"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "outputs": outputs},
        "required": ["model_name", "model_version", "outputs"],
    }
    ok = _content("application/json", answer, "The outputs. Those that were asked for as binary data follow the JSON.")
    ok["content"]["application/octet-stream"] = {"schema": _TEXT}
    return {
        "summary": "Inference: a tensor, or encoded images as BYTES.",
        "description": "With the header Inference-Header-Content-Length the JSON has that many bytes and binary tensors follow it.",
        "parameters": _HEADERS,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _request(models)}}},
        "responses": {"200": ok, **_errors(*_OF_WORK)},
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
            "data": {"type": "array", "description": "Numbers, flat or nested; of BYTES, images in base64."},
        },
        "required": ["name", "datatype", "shape"],
        "examples": [{"name": port.name, "datatype": port.datatype, "shape": [1, *port.shape], "data": []} for port in ports[:1]],
    }
    wanted: Json = {
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
            "outputs": {"type": "array", "items": wanted, "minItems": 1, "maxItems": MAX_OUTPUTS},
        },
        "required": ["inputs"],
    }
