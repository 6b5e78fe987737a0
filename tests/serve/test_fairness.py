"""Slow clients hold up nobody: bodies that are being read take no place of a request that is computed."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from contextlib import suppress

import httpx
import pytest
from starlette.requests import Request

from bench.http_fuzz import slow_uploads
from edgetl.core.bundle import Bundle
from edgetl.errors import RequestError
from edgetl.serve.protocol.body import GRACE_S, MIN_BYTES_PER_S, BodyReader
from tests.serve.serving import Served, serving
from tests.serve.test_connections import talk


@pytest.mark.parametrize("seconds", [2.0, pytest.param(40.0, marks=pytest.mark.slow)])
def test_seventy_slow_uploads_cost_a_healthy_client_nothing(bundle: Bundle, photo: bytes, seconds: float) -> None:
    """More uploads than there are places, 66 by default."""
    with serving(bundle.path, options=("--threads", "2")) as served, slow_uploads(served.port, 70), httpx.Client(timeout=10) as web:
        statuses, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            statuses.append(web.post(f"{served.url}/predict", content=photo).status_code)
        print(f"{len(statuses)} requests of a healthy client beside 70 slow uploads")
        assert set(statuses) == {200} and len(statuses) > 10


def test_an_upload_below_the_minimum_rate_is_cut_off_with_a_reason(served: Served) -> None:
    pieces = [b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", *[b"a"] * 12]
    answer = talk(served, *pieces, pause=0.5)
    assert answer.startswith(b"HTTP/1.1 408") and b"arrived too slowly" in answer and b"connection: close" in answer.lower()


def test_where_connections_run_out_the_oldest_upload_makes_room(bundle: Bundle, photo: bytes) -> None:
    with serving(bundle.path, prepare=_few_descriptors) as served:
        held = []
        for _ in range(90):
            connection = socket.create_connection(("127.0.0.1", served.port), timeout=5)
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 65000\r\n\r\nab")
            held.append(connection)
        for _ in range(5):
            assert httpx.post(f"{served.url}/predict", content=photo, timeout=5).status_code == 200
        assert held[0].recv(1 << 16).startswith(b"HTTP/1.1 408")
        for connection in held:
            connection.close()


def _few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))


def _request(chunks: list[tuple[float, bytes]]) -> Request:
    """A request whose body comes in pieces, each after a pause; it never ends by itself."""

    async def receive() -> dict[str, object]:
        if not chunks:
            await asyncio.sleep(3600)
        pause, data = chunks.pop(0)
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": data, "more_body": data != b"end"}

    return Request({"type": "http", "headers": [], "method": "POST"}, receive)


def test_bodies_that_hold_too_much_memory_together_cost_the_oldest() -> None:
    async def race() -> list[object]:
        bodies = BodyReader(max_bytes=100, max_total_bytes=150, timeout_s=30)
        readers = [bodies.read(_request([(0.0, bytes(80))])), bodies.read(_request([(0.05, bytes(80)), (0.05, b"end")]))]
        return list(await asyncio.gather(*readers, return_exceptions=True))

    oldest, newest = asyncio.run(race())
    assert isinstance(oldest, RequestError) and oldest.status == 408 and "too much memory" in str(oldest)
    assert newest == bytes(80) + b"end"


def test_the_time_for_a_body_grows_with_what_arrived() -> None:
    """Later than the grace period, at the minimum rate: an upload over a thin line succeeds."""
    assert GRACE_S >= 5 and MIN_BYTES_PER_S <= 1000

    async def read() -> bytes:
        return await BodyReader(max_bytes=10_000, max_total_bytes=10_000, timeout_s=0.5).read(_request([(0.1, b"a")] * 3 + [(0.0, b"end")]))

    assert asyncio.run(read()) == b"aaaend"


@pytest.mark.slow
def test_clients_that_do_not_read_their_answers_take_no_place(bundle: Bundle, photo: bytes) -> None:
    with serving(bundle.path, options=("--threads", "1", "--queue", "2")) as served:
        deaf = []
        for _ in range(20):
            connection = socket.create_connection(("127.0.0.1", served.port), timeout=2)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with suppress(TimeoutError):
                connection.sendall(b"GET /page.css HTTP/1.1\r\nHost: x\r\n\r\n" * 3000)
            deaf.append(connection)
        for _ in range(20):
            assert httpx.post(f"{served.url}/predict", content=photo).status_code == 200
        for connection in deaf:
            connection.close()
