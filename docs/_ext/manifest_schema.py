"""JSON Schema of ``manifest.json``, generated from the pydantic models that read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from tables import attributes

from edgetl.core.manifest import Manifest

PATH = Path(__file__).parents[1] / "reference" / "manifest.schema.json"


def schema() -> dict[str, Any]:
    """Return the schema, with the descriptions of the models' docstrings."""
    document = Manifest.model_json_schema(mode="serialization")
    for name, definition in [("Manifest", document), *document.get("$defs", {}).items()]:
        model = _models()[name]
        definition["description"] = (model.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        for key, text in attributes(model).items():
            definition["properties"].get(key, {})["description"] = text
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "manifest.json of an edgetl bundle", **document}


def _models() -> dict[str, type[BaseModel]]:
    """Return the models of the schema's definitions by name."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[Any] = [Manifest]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind.__name__ not in found:
                found[kind.__name__] = kind
                waiting += [field.annotation for field in kind.model_fields.values()]
        else:
            waiting += get_args(kind)
    return found


def text() -> str:
    """Return the content of the committed file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def write() -> None:
    """Write the committed file if it differs."""
    if not PATH.is_file() or PATH.read_text("utf-8") != text():
        PATH.write_text(text(), "utf-8")


if __name__ == "__main__":
    write()
