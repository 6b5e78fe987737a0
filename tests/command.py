"""The installed command, run as a user runs it."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

_FORK_SERVER = """
import json, os, sys, traceback
import edgetl.export.package, edgetl.train.workflows.compare
from edgetl.cli.app import main

for line in sys.stdin:
    call = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, path in enumerate((os.devnull, call["stdout"], call["stderr"])):
            os.dup2(os.open(path, os.O_RDWR), number)
        os.environ.clear()
        os.environ.update(call["environment"])
        code = 1
        try:
            main(call["arguments"])
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
_lock = threading.Lock()


@functools.cache
def _fork_server() -> subprocess.Popen[str]:
    """Start a process that has imported the libraries of training and export. It forks for each command.

    The imports take 5 seconds of CPU time, far more than most commands that the tests run.
    """
    server = subprocess.Popen([sys.executable, "-c", _FORK_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    atexit.register(server.communicate)
    return server


def edgetl(*arguments: object, cwd: Path | None = None, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; ``environment`` replaces this process's.

    Without ``cwd`` and ``environment``, the process is a fork of one that has imported the libraries already.
    """
    command = list(map(str, arguments))
    if cwd is not None or environment is not None:
        command = [sys.executable, "-m", "edgetl.cli.app", *command]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    server = _fork_server()
    assert server.stdin is not None and server.stdout is not None
    with _lock, NamedTemporaryFile() as stdout, NamedTemporaryFile() as stderr:
        call = {"arguments": command, "environment": dict(os.environ), "stdout": stdout.name, "stderr": stderr.name}
        server.stdin.write(json.dumps(call) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, code, stdout.read().decode(), stderr.read().decode())


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
