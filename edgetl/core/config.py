"""Base class of models that validate files and options, and strict parsing of JSON and TOML."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edgetl.core.files.regular import open_plain, read_plain, read_up_to
from edgetl.errors import EdgetlError

MAX_JSON_BYTES = 1_000_000


class StrictModel(BaseModel):
    """Frozen pydantic model that rejects unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Model = TypeVar("Model", bound=StrictModel)


def read_json(path: Path, model: type[Model], error: type[EdgetlError], *, max_bytes: int = MAX_JSON_BYTES) -> Model:
    """Read a strict JSON file and validate it by ``model``.

    Raises:
        EdgetlError: of class ``error``: the file is missing, too large, not JSON, or invalid for the model.
    """
    return parse_json(read_bytes(path, error, max_bytes=max_bytes), model, error, name=str(path))


def read_bytes(path: Path, error: type[EdgetlError], *, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the bytes of a regular file with at most ``max_bytes`` bytes.

    Raises:
        EdgetlError: of class ``error``: the file is missing or too large.
    """
    try:
        with open_plain(path) as file:
            data = read_up_to(file, max_bytes)
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}.") from cause
    if len(data) > max_bytes:
        raise error(f"{path} has more than {max_bytes} bytes. It is not a file that edgetl wrote.")
    return data


def parse_json(data: bytes, model: type[Model], error: type[EdgetlError], *, name: str) -> Model:
    """Parse strict JSON (UTF-8, no duplicate keys, no NaN) and validate it by ``model``. ``name`` is the file name in messages.

    Raises:
        EdgetlError: of class ``error``: ``data`` is not JSON, has a newer schema version, or is invalid for the model.
    """
    try:
        value = load_json(data)
    except (ValueError, RecursionError) as cause:
        raise error(f"{name} is not valid JSON: {cause}.") from cause
    version = value.get("schema_version") if isinstance(value, dict) else None
    known = model.model_fields["schema_version"].default if "schema_version" in model.model_fields else None
    if isinstance(value, dict) and "schema_version" in value and type(version) is not int:  # true and 1.0 are equal to 1 in Python
        raise error(f"{name} does not fit its schema: schema_version: {json.dumps(version)[:80]} is not a whole number.")
    if isinstance(version, int) and isinstance(known, int) and version > known:
        raise error(f"{name} has schema version {version}. This version of edgetl reads up to {known}. Upgrade edgetl.")
    try:
        # Strict JSON mode converts lists to tuples, but does not convert "12" to 12.
        return model.model_validate_json(data, strict=True)
    except (ValidationError, ValueError) as cause:
        found = problems(cause, model) if isinstance(cause, ValidationError) else [str(cause)]
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise error(f"{name} does not fit its schema: {'; '.join(found[:3])}{more}.") from cause


def load_json(data: bytes) -> Any:
    """Parse strict JSON: UTF-8, no duplicate keys, no NaN or infinity.

    Raises:
        ValueError: ``data`` is not strict JSON.
        RecursionError: ``data`` is nested too deeply.
    """
    return json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has a duplicate key")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"the number {name} is not allowed")


def read_toml(path: Path, model: type[Model], error: type[EdgetlError], *, name: str, max_bytes: int = 100_000) -> Model:
    """Read a TOML file and validate it by ``model``. ``name`` is the file name in messages.

    Raises:
        EdgetlError: of class ``error``: the file is missing, not TOML, or invalid for the model. The message lists every mistake.
    """
    try:
        value = tomllib.loads(read_plain(path, max_bytes=max_bytes).decode("utf-8"))
        # Strict JSON mode accepts arrays for tuples. Dates become text, which no key accepts.
        return model.model_validate_json(json.dumps(value, default=str), strict=True)
    except OSError as cause:
        raise error(f"{name} cannot be read: {cause.strerror}.") from cause
    except ValidationError as cause:
        raise error(f"{name}: {'; '.join(problems(cause, model))}.") from cause
    except ValueError as cause:  # not TOML, or not UTF-8
        raise error(f"{name} is not TOML: {cause}.") from cause


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """List the mistakes of a validation error, each with its key. For an unknown key the text lists the known keys."""
    found = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "file"
        unknown = item["type"] == "extra_forbidden" and len(item["loc"]) == 1
        known = ", ".join(name for name in model.model_fields if name != "schema_version")
        mistake = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]
        found.append(f"{key} is not known (known: {known})" if unknown else f"{key}: {mistake}")
    return found
