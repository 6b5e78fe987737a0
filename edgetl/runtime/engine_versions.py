"""Releases of the engines: the oldest that works, and the error where a file and a release do not fit."""

from __future__ import annotations

import re

from edgetl.errors import EngineError
from edgetl.installation import install_command

# Those of pyproject.toml's extras, tested to be the same.
OLDEST = {"onnxruntime": "1.22", "openvino": "2025.3"}


def need(library: str, found: str) -> None:
    """Refuse an engine that is older than the oldest that edgetl was tested with.

    Raises:
        EngineError: with the release that is needed and the command that installs it.
    """
    if _numbers(found) < _numbers(OLDEST[library]):
        raise EngineError(
            f"{library} {found} is too old: edgetl needs {library} >= {OLDEST[library]}. "
            f"Install it with: {install_command(library, '--upgrade')}"
        )


def differs(library: str, found: str | None, bench: str | None) -> str:
    """What may explain a refused file: the bundle was made with another release. Empty where that is not so."""
    if found is None or bench is None or _numbers(found) == _numbers(bench):
        return ""
    older = "which is older" if _numbers(found) < _numbers(bench) else "which is newer"
    return f" The bundle was checked with {library} {bench}, and here is {found}, {older}: pip install {library}=={bench}"


def _numbers(release: str) -> tuple[int, ...]:
    """``2026.4.1-223-abc`` as (2026, 4)."""
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])
