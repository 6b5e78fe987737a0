"""How a server ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from bench.drain import Load
from edgetl.core.bundle import Bundle
from edgetl.serve.connections.listener import accept_pending, bind
from tests.command import edgetl
from tests.serve.serving import Served, free_port, serving, until


class Clients:
    """Threads that ask as fast as they get answers; a client told that its connection closes opens another until none can be opened.

    Attributes:
        codes: how often each status came.
        lost: what was sent on a connection that the server accepted, and not answered.
    """

    def __init__(self, served: Served, photo: bytes, count: int) -> None:
        self.codes: Counter[int] = Counter()
        self.lost: list[str] = []
        self._served, self._photo, self._stop = served, photo, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            with httpx.Client(timeout=30) as client:
                try:
                    while not self._stop.is_set():
                        answer = client.post(f"{self._served.url}/predict", content=self._photo)
                        self.codes[answer.status_code] += 1
                        if answer.headers.get("Connection") == "close":
                            break
                except httpx.ConnectError:
                    # Nobody accepts any more: nothing was sent.
                    return
                except httpx.HTTPError as error:
                    self.lost.append(repr(error))

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize(("trials", "least"), [(2, 100), pytest.param(30, 50_000, marks=pytest.mark.slow)])
def test_no_request_is_lost_on_sigterm(bundle: Bundle, photo: bytes, trials: int, least: int) -> None:
    """Clients that keep their connection, open one for each request, pipeline, or pause; ``bench.drain`` defines a lost request."""
    statuses: Counter[int] = Counter()
    lost: list[str] = []
    for _ in range(trials):
        with serving(bundle.path) as served:
            load = Load(served.port, photo, of_each=4)
            time.sleep(1.0 if trials == 2 else 4.0)
            served.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            assert not served.ready(), "readiness falls before connections are refused"
            assert served.process.wait(30) == 0
            load.end()
            assert "Traceback" not in served.said()
        statuses += load.statuses
        lost += load.lost
    print(dict(statuses))
    assert not lost and set(statuses) == {200} and statuses.total() >= least


def test_a_connection_that_waits_to_be_accepted_is_answered_on_sigterm(bundle: Bundle) -> None:
    """The server stands still while clients connect, so that they wait in the system's queue when the signal comes."""
    with serving(bundle.path) as served:
        served.process.send_signal(signal.SIGSTOP)
        waiting = [socket.create_connection(("127.0.0.1", served.port), timeout=20) for _ in range(50)]
        for connection in waiting:
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        served.process.send_signal(signal.SIGTERM)
        served.process.send_signal(signal.SIGCONT)
        for connection in waiting:
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer
            connection.close()
        assert served.process.wait(30) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere handshakes cannot be stopped")
def test_a_client_that_comes_while_the_socket_closes_is_refused_and_not_reset() -> None:
    async def last(listener: socket.socket) -> int:
        accepted = [connection async for connection in accept_pending(listener)]
        for connection in accepted:
            connection.close()
        return len(accepted)

    with bind("127.0.0.1", 0) as listener:
        listener.listen(8)
        listener.setblocking(False)
        address = listener.getsockname()
        early = socket.create_connection(address, timeout=5)
        assert asyncio.run(last(listener)) == 1
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.2)
        early.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_soon_and_well(bundle: Bundle, number: signal.Signals) -> None:
    with serving(bundle.path) as served, httpx.Client() as web:
        web.get(f"{served.url}/v2")
        begin = time.monotonic()
        served.process.send_signal(number)
        assert served.process.wait(10) == 0 and time.monotonic() - begin < 4
        assert "Traceback" not in served.said()


def test_a_second_signal_ends_at_once(bundle: Bundle, photo: bytes) -> None:
    with serving(bundle.path, options=("--threads", "1")) as served:
        # Its worker stands still, so there is something to wait for.
        for worker in served.workers():
            os.kill(worker, signal.SIGSTOP)
        clients = Clients(served, photo, 2)
        time.sleep(0.5)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(2.5)
        assert served.process.poll() is None, "it waits for what it accepted"
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(5) == 0
        clients.end()


@pytest.mark.parametrize("after", [0.3, 0.8, *(pytest.param(tenths / 10 + 0.05, marks=pytest.mark.slow) for tenths in range(4, 24))])
def test_a_signal_during_the_start_ends_it_without_a_traceback(bundle: Bundle, after: float) -> None:
    served = Served([bundle.path])
    time.sleep(after)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(10) in (0, -signal.SIGTERM, 143)
    assert "Traceback" not in served.said()
    assert not served.workers()
    served.stop()


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_no_worker_outlives_its_server(bundle: Bundle) -> None:

    served = Served([bundle.path]).wait()
    workers = served.workers()
    assert workers
    served.process.kill()
    served.process.wait()
    until(lambda: not any(_alive(worker) for worker in workers), seconds=5)
    served.stop()


def test_a_host_that_is_not_here_is_a_clean_error(bundle: Bundle) -> None:
    for host in ("203.0.113.7", "no such host"):
        done = edgetl("serve", bundle.path, "--host", host, "--port", free_port(), "--insecure")
        assert done.returncode == 3 and f"cannot listen on {host}" in done.stderr and "Traceback" not in done.stderr


def test_ipv6_is_a_host_like_any(bundle: Bundle, photo: bytes) -> None:
    served = Served([bundle.path], "--host", "::1").wait()
    assert f"http://[::1]:{served.port}" in served.said()
    assert httpx.post(f"http://[::1]:{served.port}/predict", content=photo).status_code == 200
    assert served.stop() == 0
