"""Versions of the engines: the minimum version, and a hint when the bundle was exported with another version."""

from __future__ import annotations

import re

from edgetl.errors import EngineError
from edgetl.installation import install_command

# Lower bounds of the extras in pyproject.toml. A test compares them.
OLDEST = {"onnxruntime": "1.22", "openvino": "2025.3"}


def check_version(library: str, found: str) -> None:
    """Check that an engine is not older than the minimum version.

    Raises:
        EngineError: it is too old. The message names the minimum version and the command that installs it.
    """
    if _numbers(found) < _numbers(OLDEST[library]):
        raise EngineError(
            f"{library} {found} is too old. edgetl needs {library} >= {OLDEST[library]}. "
            f"Install it with: {install_command(library, '--upgrade')}"
        )


def version_hint(library: str, found: str | None, exported: str | None) -> str:
    """Return a hint for a file that cannot be loaded: the bundle was exported with another version. Empty if the versions are equal."""
    if found is None or exported is None or _numbers(found) == _numbers(exported):
        return ""
    age = "older" if _numbers(found) < _numbers(exported) else "newer"
    return (
        f" The bundle was verified with {library} {exported}; the installed {found} is {age}. "
        f"Install the other version with: pip install {library}=={exported}"
    )


def _numbers(release: str) -> tuple[int, ...]:
    """Return major and minor version: (2026, 4) for ``2026.4.1-223-abc``."""
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])
