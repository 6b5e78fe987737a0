"""One registry knows the export formats."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import edgetl.export
from edgetl.core.manifest import Format
from edgetl.export.formats import FORMATS

# The registry, and the defaults of the options.
ALLOWED = {"formats.py", "config.py"}


def test_every_format_has_a_backend() -> None:
    assert set(FORMATS) == set(get_args(Format))
    assert all(set(backend.writers) == {"fp32", "fp16", "int8-weights"} for backend in FORMATS.values())


def test_no_other_module_of_export_names_a_format() -> None:
    named = {
        f"{path.name}:{node.lineno}"
        for path in Path(edgetl.export.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if path.name not in ALLOWED and isinstance(node, ast.Constant) and node.value in get_args(Format)
    }
    assert named == set()
