"""Tables of reference pages, generated from the code: options, fields of files, exit codes, metrics and routes."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
from markup import plain_text, table
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edgetl import errors
from edgetl.core.options import Option, options
from edgetl.serve.metrics import Metrics
from edgetl.serve.protocol.models import Models
from edgetl.serve.protocol.openapi import document

_ATTRIBUTE = re.compile(r"^(?P<names>[\w, ]+?)(?: \([^)]*\))?: (?P<text>.*)$")


def find(path: str) -> Any:
    """Return the object at a dotted path such as ``edgetl.core.manifest.Manifest``."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def config(path: str) -> str:
    """Return the options of a configuration model, one table for each group."""
    model = find(path)
    parts = []
    for group, members in groupby(options(model).values(), key=lambda option: option.group):
        title = f"### {group}\n\n" if group else ""
        parts.append(
            title + table(["Option", "Type", "Default", "Description"], [_option(option) for option in members], ".stacked .options")
        )
    return "\n".join(parts)


def _option(option: Option) -> list[str]:
    return [
        f"`{option.name}`",
        type_name(option.field.annotation, option.field),
        _default(option.field),
        plain_text(option.field.description or ""),
    ]


def fields(path: str) -> str:
    """Return the fields of a pydantic model or dataclass, with the descriptions of its docstring."""
    model = find(path)
    texts = attributes(model)
    if issubclass(model, BaseModel):
        rows = [
            [f"`{name}`", type_name(field.annotation, field), plain_text(texts.get(name) or field.description or "")]
            for name, field in model.model_fields.items()
        ]
    else:
        hints = get_type_hints(model, include_extras=True)
        rows = [
            [f"`{field.name}`", type_name(hints[field.name]), plain_text(texts.get(field.name, ""))] for field in dataclasses.fields(model)
        ]
    return table(["Key", "Type", "Description"], rows)


def attributes(model: type) -> dict[str, str]:
    """Return the descriptions under ``Attributes:`` of the docstring, by name."""
    _, _, section = inspect.cleandoc(model.__doc__ or "").partition("\nAttributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if not line.startswith("    "):
            if line.strip():
                break
        elif not line.startswith("     ") and (entry := _ATTRIBUTE.match(line.strip())):
            names = [name.strip() for name in entry["names"].split(",")]
            found.update(dict.fromkeys(names, entry["text"]))
        else:
            for name in names:
                found[name] += f" {line.strip()}"
    return {name: text[:1].upper() + text[1:] for name, text in found.items()}


def exit_codes() -> str:
    """Return the exit codes of the exception classes."""
    kinds = sorted(_subclasses(errors.EdgetlError), key=lambda kind: kind.exit_code)
    rows = [[f"`{kind.exit_code}`", f"`{kind.__name__}`", plain_text((inspect.getdoc(kind) or "").split("\n\n")[0])] for kind in kinds]
    return table(["Code", "Exception", "Meaning"], rows)


def _subclasses(kind: type[errors.EdgetlError]) -> Iterator[type[errors.EdgetlError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _subclasses(child)


def metrics() -> str:
    """Return the Prometheus metrics of the server, from its registry."""
    rows, registry = [], Metrics().registry
    for family in registry.collect():
        if family.name.startswith("edgetl_"):
            collector = registry._names_to_collectors[family.name]  # the labels of a metric without values are not public
            labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append([f"`{name}`", family.type, labels, plain_text(family.documentation)])
    return table(["Name", "Type", "Labels", "Meaning"], rows)


def routes() -> str:
    """Return the routes of the OpenAPI document."""
    rows = []
    for path, item in document(Models([]), "0")["paths"].items():
        for method in ("get", "post"):
            if method in item:
                statuses = ", ".join(sorted(item[method]["responses"]))
                rows.append([f"`{method.upper()} {path}`", plain_text(item[method]["summary"]), statuses])
    return table(["Route", "Purpose", "Status"], rows)


def type_name(annotation: Any, field: FieldInfo | None = None) -> str:
    """Return a readable name of a type: choices, bounds, ``list of …``, ``or null``."""
    name = _type(annotation)
    bounds = [text for item in (field.metadata if field else ()) if (text := _bound(item))]
    return f"{name}, {', '.join(bounds)}" if bounds else name


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [text for item in arguments[1:] if (text := _bound(item))]
        return ", ".join([_type(arguments[0]), *bounds])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join("null" if item is NoneType else _type(item) for item in arguments)
    if origin in (tuple, list):
        if len(arguments) == 2 and arguments[1] is ...:
            return f"list of {_type(arguments[0])}"
        return f"[{', '.join(map(_type, arguments))}]"
    if origin is dict:
        return f"object of {_type(arguments[1])}"
    return {int: "integer", float: "number", str: "text", bool: "boolean"}.get(annotation, getattr(annotation, "__name__", "any"))


def _bound(item: Any) -> str:
    """Return a bound of a field's metadata, or nothing."""
    signs = {annotated_types.Ge: "≥", annotated_types.Gt: ">", annotated_types.Le: "≤", annotated_types.Lt: "<"}
    for kind, sign in signs.items():
        if isinstance(item, kind):
            value = getattr(item, kind.__name__.lower())
            return f"{sign} 2^{value.bit_length() - 1}" if isinstance(value, int) and value > 2**30 else f"{sign} {value:g}"
    return ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`" if value else "none"
    return "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"
