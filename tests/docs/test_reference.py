"""Reference pages: quoted messages exist, and the generated parts and the JSON Schema of the manifest equal the code."""

from __future__ import annotations

import ast
import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.bundle import Bundle
from tests.docs.pages import ROOT

REFERENCE = ROOT / "docs" / "reference"
sys.path.insert(0, str(ROOT / "docs" / "_ext"))


def _messages(tree: ast.AST) -> Iterator[str]:
    """Texts of a module, with an ellipsis in place of each expression."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(value.value if isinstance(value, ast.Constant) else "…" for value in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _quoted() -> list[str]:
    page = (REFERENCE / "troubleshooting.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| .* \| .* \|$", page, re.MULTILINE)
    return re.findall(r"^> `([^`]+)`$", page, re.MULTILINE) + rows


def test_each_quoted_message_is_in_the_sources() -> None:
    sources = [text for path in (ROOT / "edgetl").rglob("*.py") for text in _messages(ast.parse(path.read_text("utf-8")))]
    texts = [" ".join(text.split()) for text in sources]
    quoted = _quoted()
    assert len(quoted) > 40
    missing = []
    for message in quoted:
        # The code may wrap a part in further expressions, so only the fixed parts are compared, in order.
        parts = [re.escape(part.strip(" .:;,()'")) for part in message.split("…") if part.strip(" .:;,()'")]
        if not any(re.search(".*".join(parts), text) for text in texts):
            missing.append(message)
    assert not missing, "docs/reference/troubleshooting.md quotes messages that are not in the sources:\n" + "\n".join(missing)


def test_committed_schema_equals_the_models() -> None:
    import manifest_schema

    assert manifest_schema.PATH.read_text("utf-8") == manifest_schema.text(), "run make docs, and commit the schema"


def test_committed_reference_pages_equal_the_code() -> None:
    import generated

    pages = generated.pages()
    assert len(pages) >= 7
    stale = [page.name for page in pages if generated.refresh(text := page.read_text("utf-8")) != text]
    assert not stale, f"run make docs, and commit docs/reference: {stale}"


def test_every_generated_part_has_an_end() -> None:
    import generated

    for page in generated.pages():
        text = page.read_text("utf-8")
        assert text.count("<!-- generated: ") == text.count(f"\n{generated.END}\n"), page.name


Mutation = Callable[[dict[str, Any]], Any]
MUTATIONS: dict[str, Mutation] = {
    "unknown key": lambda manifest: manifest.update(author="somebody"),
    "missing key": lambda manifest: manifest.pop("labels"),
    "newer version": lambda manifest: manifest.update(schema_version=2),
    "text for a number": lambda manifest: manifest.update(release="1"),
    "release of zero": lambda manifest: manifest.update(release=0),
    "no variants": lambda manifest: manifest.update(variants=[]),
    "unknown precision": lambda manifest: manifest["variants"][0].update(precision="int4"),
    "short hash": lambda manifest: manifest["variants"][0]["files"][0].update(sha256="abc"),
    "unknown crop mode": lambda manifest: manifest["preprocess"].update(crop_mode="stretch"),
    "one side": lambda manifest: manifest["preprocess"].update(input_size=[224]),
}


def test_schema_accepts_a_real_manifest_and_rejects_mutated_ones(bundle: Bundle) -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    validator = jsonschema_rs.validator_for(json.loads((REFERENCE / "manifest.schema.json").read_text("utf-8")))
    manifest = json.loads(Path(bundle.path, "manifest.json").read_bytes())
    validator.validate(manifest)
    for name, mutate in MUTATIONS.items():
        mutated = copy.deepcopy(manifest)
        mutate(mutated)
        assert not validator.is_valid(mutated), name
