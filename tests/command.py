"""The installed command, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def edgetl(
    *arguments: object, timeout: float = 120, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the installed command; ``environment`` replaces this process's."""
    command = [sys.executable, "-m", "edgetl.cli.app", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd, env=environment)
