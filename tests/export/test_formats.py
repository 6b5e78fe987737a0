"""Registry of export formats, and the options for formats."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import edgetl.export
from edgetl.core.manifest import Format
from edgetl.export.config import ExportConfig
from edgetl.export.formats import FORMATS

# The registry, and the defaults of the options.
ALLOWED = {"formats.py", "config.py"}


def test_every_format_has_a_backend() -> None:
    assert set(FORMATS) == set(get_args(Format))
    assert all(set(backend.writers) == {"fp32", "fp16", "int8-weights"} for backend in FORMATS.values())


def test_only_the_registry_and_the_options_name_formats() -> None:
    named = {
        f"{path.name}:{node.lineno}"
        for path in Path(edgetl.export.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if path.name not in ALLOWED and isinstance(node, ast.Constant) and node.value in get_args(Format)
    }
    assert named == set()


def test_export_options_do_not_import_torch() -> None:
    code = "import sys; from edgetl.export import ExportConfig, FitConfig; ExportConfig(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_of_export_can_be_imported() -> None:
    assert all(hasattr(edgetl.export, name) for name in edgetl.export.__all__)


@pytest.mark.parametrize("value", ["onnx,openvino", "openvino, onnx,onnx", ["onnx,openvino"], ("onnx", "openvino")])
def test_formats_are_a_comma_separated_list_or_a_sequence(value: object) -> None:
    assert set(ExportConfig.model_validate({"formats": value}).formats) == {"onnx", "openvino"}
