"""The installed command, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


def edgetl(*arguments: object, cwd: Path | None = None, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the installed command; ``environment`` replaces this process's."""
    command = [sys.executable, "-m", "edgetl.cli.app", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


class Printed(NamedTuple):
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def words(self) -> str:
        """The error stream without frames and line breaks."""
        return " ".join(self.stderr.replace("│", " ").split())


_IN_ONE_PROCESS = """
import contextlib, io, json, os, sys
from edgetl.cli.app import main
for arguments, variables in json.load(sys.stdin):
    os.environ.update(variables)
    printed = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(printed[0]), contextlib.redirect_stderr(printed[1]):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code or 0
    for name in variables:
        del os.environ[name]
    print(json.dumps([code, *(stream.getvalue() for stream in printed)]), flush=True)
"""


def edgetl_in_one_process(
    commands: Sequence[Sequence[str]], variables: Sequence[dict[str, str]] = (), cwd: Path | None = None
) -> list[Printed]:
    """Run several commands, one after the other, in one new process of 80 columns. ``variables`` are environment variables per command."""
    calls = [(list(arguments), variables[index] if variables else {}) for index, arguments in enumerate(commands)]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", _IN_ONE_PROCESS],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
        env=environment,
    )
    return [Printed(*json.loads(line)) for line in done.stdout.splitlines()]
