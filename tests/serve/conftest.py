from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(bundle: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """``edgetl serve`` in a process of its own, once it is ready; and its address."""
    port = free_port()
    command = [sys.executable, "-m", "edgetl.cli.app", "serve", str(bundle), "--port", str(port), "--variant", "onnx-fp32", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    address = f"127.0.0.1:{port}"
    for _ in range(600):
        if process.poll() is not None:
            raise AssertionError(process.stderr.read() if process.stderr else "")
        try:
            with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=1) as answer:
                assert answer.status == 200
                return process, address
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise AssertionError("the server did not become ready")


@pytest.fixture(scope="session")
def server(bundle: Bundle) -> Iterator[str]:
    """The address of a server of the digits' bundle, its fp32 ONNX variant."""
    process, address = start(bundle.path)
    yield address
    process.terminate()
    assert process.wait(30) == 0
    if process.stderr:
        process.stderr.close()
