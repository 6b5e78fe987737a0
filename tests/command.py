"""The installed command, run as a user runs it."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from edgetl.cli.app import main

# Processes are forked from one that has imported the libraries of training and export. The imports take 5 seconds of CPU time, far more
# than most commands that the tests run.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["pytest", "tests.command", "edgetl.cli.app", "edgetl.export.package", "edgetl.train.workflows.compare"])


class Command:
    """Command that runs in a process group of its own."""

    def __init__(self, *arguments: object) -> None:
        self._folder = TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in self._outputs:
            path.touch()
        self._arguments = list(map(str, arguments))
        self._process = _PROCESSES.Process(target=_run, args=(self._arguments, dict(os.environ), Path.cwd(), self._outputs))
        self._process.start()

    def is_running(self) -> bool:
        """Return true until the process ends."""
        return self._process.is_alive()

    def signal(self, number: int, *, at: str = "") -> None:
        """Send a signal to the process group, as a terminal does, as soon as the error output contains ``at``."""
        while at not in self._outputs[1].read_text("utf-8") and self.is_running():
            time.sleep(0.02)
        assert self._process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait until the process ends, and return its exit code and output."""
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        done = subprocess.CompletedProcess(self._arguments, code, *(path.read_text("utf-8") for path in self._outputs))
        self._folder.cleanup()
        return done


def _run(arguments: list[str], environment: dict[str, str], folder: Path, outputs: list[Path]) -> None:
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the default of an interpreter, for the data loaders of the command
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    main(arguments)


def edgetl(*arguments: object, cwd: Path | None = None, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own. With ``cwd`` or ``environment``, the process is a new interpreter."""
    if cwd is None and environment is None:
        return Command(*arguments).wait()
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
