"""OpenAPI document: schemathesis generates requests from it and checks the responses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from edgetl.core.bundle import Bundle
from tests.serve.serving import Served


@pytest.mark.parametrize("examples", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_schemathesis_finds_no_violation(served: Served, examples: int, tmp_path: Path) -> None:
    # schemathesis writes its folder .schemathesis into the current folder.
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(Path(__file__).with_name("schemathesis.toml"))]
    options = ["run", f"{served.url}/openapi.json", "--max-examples", str(examples), "--no-color"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]


def test_document_contains_all_routes(served: Served, bundle: Bundle) -> None:
    found = httpx.get(f"{served.url}/openapi.json", timeout=None).json()
    assert found["openapi"].startswith("3.1")
    assert {"/predict", "/models", "/metrics", "/v2", "/v2/models/{model}/infer"} <= set(found["paths"])
    assert bundle.manifest.name in str(found["paths"]["/v2/models/{model}/infer"]["parameters"])
