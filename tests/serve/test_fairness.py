"""Slow uploads: they take no place in the request queue and little memory."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import httpx
import pytest
from starlette.requests import Request

from bench.server.http_fuzz import slow_uploads
from edgetl.core.bundle import Bundle
from edgetl.errors import RequestError
from edgetl.serve.protocol.body import GRACE_S, MIN_BYTES_PER_S, BodyReader
from tests.serve.serving import Served, serving
from tests.serve.test_connections import exchange


@pytest.mark.parametrize("count", [20, pytest.param(2_000, marks=pytest.mark.slow)])
def test_slow_uploads_do_not_block_other_clients(served: Served, photo: bytes, count: int) -> None:
    """There are 70 uploads, more than the 66 requests that the server admits."""
    with slow_uploads(served.port, 70), httpx.Client(timeout=None) as web:
        assert {web.post(f"{served.url}/predict", content=photo).status_code for _ in range(count)} == {200}


def test_upload_below_the_minimum_rate_gets_408(served: Served) -> None:
    pieces = [b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", *[b"a"] * 12]
    response = exchange(served, *pieces, pause=0.5)
    assert response.startswith(b"HTTP/1.1 408") and b"arrived too slowly" in response and b"connection: close" in response.lower()


def test_oldest_upload_is_closed_when_connections_run_out(small_server: Served, photo: bytes) -> None:
    uploads = []
    for _ in range(90):
        connection = socket.create_connection(("127.0.0.1", small_server.port))
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 65000\r\n\r\nab")
        uploads.append(connection)
    for _ in range(5):
        assert httpx.post(f"{small_server.url}/predict", content=photo, timeout=None).status_code == 200
    assert uploads[0].recv(1 << 16).startswith(b"HTTP/1.1 408")
    for connection in uploads:
        connection.close()


def _request(chunks: list[bytes | asyncio.Event]) -> Request:
    """Return a request with these chunks. It waits at each event, and without ``b"end"`` it never ends."""

    async def receive() -> dict[str, object]:
        while chunks and isinstance(event := chunks[0], asyncio.Event):
            await event.wait()
            chunks.pop(0)
        if not chunks:
            await asyncio.Event().wait()
        data = chunks.pop(0)
        return {"type": "http.request", "body": data, "more_body": data != b"end"}

    return Request({"type": "http", "headers": [], "method": "POST"}, receive)


def test_oldest_body_gets_408_when_memory_runs_out() -> None:
    async def read_both() -> tuple[object, bytes]:
        reader, oldest_ended = BodyReader(max_bytes=100, max_total_bytes=150, timeout_s=300), asyncio.Event()
        oldest = asyncio.create_task(reader.read(_request([bytes(80)])))
        oldest.add_done_callback(lambda _task: oldest_ended.set())
        newest = asyncio.create_task(reader.read(_request([bytes(80), oldest_ended, b"end"])))
        await asyncio.wait([oldest, newest])
        return oldest.exception(), newest.result()

    error, body = asyncio.run(read_both())
    assert isinstance(error, RequestError) and error.status == 408 and "too much memory" in str(error)
    assert body == bytes(80) + b"end"


def test_time_limit_of_a_body_grows_with_its_size() -> None:
    """An upload at the minimum rate succeeds after the grace period."""
    assert GRACE_S >= 5 and MIN_BYTES_PER_S <= 1000

    async def read() -> bytes:
        return await BodyReader(max_bytes=10_000, max_total_bytes=10_000, timeout_s=300).read(_request([b"a", b"a", b"a", b"end"]))

    assert asyncio.run(read()) == b"aaaend"


@pytest.mark.slow
def test_clients_that_do_not_read_responses_do_not_block_other_clients(bundle: Bundle, photo: bytes) -> None:
    with serving(bundle.path, options=("--threads", "1", "--queue", "2")) as served:
        blocked = []
        for _ in range(20):
            connection = socket.create_connection(("127.0.0.1", served.port), timeout=2)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with suppress(TimeoutError):
                connection.sendall(b"GET /page.css HTTP/1.1\r\nHost: x\r\n\r\n" * 3000)
            blocked.append(connection)
        for _ in range(20):
            assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200
        for connection in blocked:
            connection.close()
