"""stub."""

from __future__ import annotations

from typing import Any

from edgetl.serve.models import Models


def document(models: Models, version: str) -> dict[str, Any]:
    return {}
