"""Graceful shutdown, signals, and addresses of the server."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from bench.server.drain import Load
from edgetl.core.bundle import Bundle
from edgetl.errors import ConfigError
from edgetl.serve.connections.listener import accept_pending, bind
from tests.command import edgetl
from tests.serve.serving import Served, free_port, serving, until

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(("trials", "least"), [(1, 50), pytest.param(30, 50_000, marks=pytest.mark.slow)], ids=["short", "long"])
def test_sigterm_loses_no_request(bundle: Bundle, photo: bytes, trials: int, least: int) -> None:
    """Clients keep their connection, open one per request, pipeline, or pause. ``bench.server.drain`` defines a lost request."""
    statuses: Counter[int] = Counter()
    lost: list[str] = []
    for _ in range(trials):
        with serving(bundle.path) as served:
            load = Load(served.port, photo, of_each=4)
            until(lambda load=load: load.statuses.total() >= least / trials)  # type: ignore[misc]
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait() == 0
            load.end()
            assert "Traceback" not in served.log()
        statuses += load.statuses
        lost += load.lost
    print(dict(statuses))
    assert not lost and set(statuses) == {200}


def _state(pid: int) -> str:
    """Return the state of a process in ``/proc``, such as ``S`` or ``T``. A process that does not exist is ``X``."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_queued_connections_get_a_response_after_sigterm(bundle: Bundle) -> None:
    """Readiness is false in these responses. The server is stopped while clients connect, so their connections are queued at the signal."""
    with serving(bundle.path) as served:
        served.process.send_signal(signal.SIGSTOP)
        until(lambda: {_state(int(task.name)) for task in Path(f"/proc/{served.process_id}/task").iterdir()} == {"T"})
        waiting = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(50)]
        for index, connection in enumerate(waiting):
            connection.sendall((LIVE, READY)[index % 2])
        served.process.send_signal(signal.SIGTERM)
        served.process.send_signal(signal.SIGCONT)
        for index, connection in enumerate(waiting):
            response = connection.recv(65536)
            assert response.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503")[index % 2]) and b"connection: close" in response
            connection.close()
        assert served.process.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot stop handshakes")
def test_client_is_refused_while_the_listener_closes() -> None:
    """The client's connection is not reset."""

    async def accept_all(listener: socket.socket) -> int:
        accepted = [connection async for connection in accept_pending(listener)]
        for connection in accepted:
            connection.close()
        return len(accepted)

    with bind("127.0.0.1", 0) as listener:
        listener.listen(8)
        listener.setblocking(False)
        address = listener.getsockname()
        early = socket.create_connection(address)
        assert asyncio.run(accept_all(listener)) == 1
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.2)
        early.close()


def test_second_signal_ends_the_server_immediately(bundle: Bundle, photo: bytes) -> None:
    with serving(bundle.path, options=("--threads", "1")) as served:
        served.signal_workers(signal.SIGSTOP)
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(photo) + photo)
            until(lambda: served.metric("edgetl_inflight") == 1)
            served.process.send_signal(signal.SIGTERM)
            until(lambda: not _is_listening(served))
            assert served.process.poll() is None, "the server waits for the open request"
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait() == 0


def _is_listening(served: Served) -> bool:
    try:
        socket.create_connection(("127.0.0.1", served.port), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("after", [0.3, 0.8, *(pytest.param(tenths / 10 + 0.05, marks=pytest.mark.slow) for tenths in range(4, 24))])
def test_sigterm_during_the_start_prints_no_traceback(bundle: Bundle, after: float) -> None:
    served = Served([bundle.path])
    time.sleep(after)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait() in (0, -signal.SIGTERM, 143)
    assert "Traceback" not in served.log()
    assert not served.workers()
    served.stop()


def test_workers_end_after_their_server_is_killed(bundle: Bundle) -> None:
    served = Served([bundle.path]).wait()
    workers = served.workers()
    assert workers
    served.process.kill()
    served.process.wait()
    until(lambda: all(_state(worker) in "XZ" for worker in workers))
    served.stop()


def test_ipv6_server_ends_on_sigint(bundle: Bundle, photo: bytes) -> None:
    with serving(bundle.path, host="::1") as served:
        assert f"http://[::1]:{served.port}" in served.log()
        assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait() == 0 and "Traceback" not in served.log()


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_address_of_another_host_is_an_error(host: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {host}"):
        bind(host, free_port())


def test_port_in_use_is_an_error(bundle: Bundle) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = edgetl("serve", bundle.path, "--port", taken.getsockname()[1], "--variant", "onnx-fp32")
    assert done.returncode == ConfigError.exit_code and "cannot listen on 127.0.0.1" in done.stderr and "Traceback" not in done.stderr
