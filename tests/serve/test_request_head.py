"""Request heads (RFC 9112), and error responses before the connection closes."""

from __future__ import annotations

import json
import re
import socket
import time

import pytest

from edgetl.serve.connections.rejection import MalformedRequestError
from edgetl.serve.connections.request_head import check_head, with_path
from tests.serve.serving import Served
from tests.serve.test_connections import GET, exchange

HOST = (b"host", b"camera-7.local:8000")


@pytest.mark.parametrize(
    ("version", "method", "headers", "status"),
    [
        ("1.1", b"GET", [], 400),
        ("1.1", b"GET", [HOST, HOST], 400),
        ("1.0", b"GET", [HOST, (b"host", b"other")], 400),
        ("1.1", b"GET", [(b"host", b"a b")], 400),
        ("1.1", b"GET", [(b"host", b"user@a")], 400),
        ("1.1", b"GET", [(b"host", b"a/b")], 400),
        ("1.1", b"GET", [(b"host", b"a:port")], 400),
        ("2.0", b"GET", [HOST], 400),
        ("0.9", b"GET", [], 400),
        ("1.1", b"CONNECT", [HOST], 400),
        ("1.1", b"POST", [HOST, (b"transfer-encoding", b"gzip")], 501),
        ("1.1", b"POST", [HOST, (b"transfer-encoding", b"gzip, chunked")], 501),
        ("1.1", b"POST", [HOST, (b"transfer-encoding", b"identity")], 501),
        ("1.1", b"POST", [HOST, (b"transfer-encoding", b"gzip"), (b"transfer-encoding", b"chunked")], 501),
        ("1.0", b"POST", [(b"transfer-encoding", b"chunked")], 400),
        ("1.1", b"POST", [HOST, (b"expect", b"other")], 417),
    ],
)
def test_invalid_head_is_rejected(version: str, method: bytes, headers: list[tuple[bytes, bytes]], status: int) -> None:
    with pytest.raises(MalformedRequestError) as caught:
        check_head(version, method, headers)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        ("1.0", []),
        ("1.0", [HOST, (b"expect", b"anything")]),
        ("1.1", [HOST]),
        ("1.1", [(b"host", b"")]),
        ("1.1", [(b"host", b"[::1]:8000")]),
        ("1.1", [(b"host", b"xn--bcher-kva.example")]),
        ("1.1", [HOST, (b"transfer-encoding", b"Chunked")]),
        ("1.1", [HOST, (b"expect", b"100-Continue")]),
    ],
)
def test_valid_head_is_accepted(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    check_head(version, b"POST", headers)


@pytest.mark.parametrize(
    ("target", "expected"),
    [(b"/v2?a=http://b", b"/v2?a=http://b"), (b"http://a", b"http://a/"), (b"http://a?b=/c", b"http://a/?b=/c"), (b"*", b"*")],
)
def test_absolute_target_without_a_path_gets_the_root_path(target: bytes, expected: bytes) -> None:
    assert with_path(target) == expected


def _statuses(response: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", response)]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nabcde", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nabcde", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\nHost: x\n\n", 400),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;%s\r\na\r\n" % (b"x" * 9000) * 60, 400),
    ],
    ids=["no host", "two hosts", "coding", "chunked not last", "list", "twice", "folded", "bare LF", "CONNECT", "chunk extensions"],
)
def test_invalid_head_gets_one_error_response(served: Served, request_bytes: bytes, status: int) -> None:
    response = exchange(served, request_bytes + GET)
    assert _statuses(response) == [status] and b"connection: close" in response
    assert set(json.loads(response.partition(b"\r\n\r\n")[2])) == {"error"}


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v2/health/live HTTP/1.0\r\n\r\n",
        b"GET http://camera/v2/health/live HTTP/1.1\r\nHost: camera\r\nConnection: close\r\n\r\n",
        b"GET http://camera HTTP/1.1\r\nHost: camera\r\nConnection: close\r\n\r\n",
        b"GET /v2/health/live HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
    ],
    ids=["1.0 without host", "absolute", "absolute without path", "empty host"],
)
def test_rare_but_valid_head_gets_200(served: Served, request_bytes: bytes) -> None:
    assert _statuses(exchange(served, request_bytes)) == [200]


def test_http_1_0_client_gets_no_100_continue(served: Served, photo: bytes) -> None:
    head = b"POST /predict HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(photo)
    assert _statuses(exchange(served, head + photo)) == [200]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["not HTTP", "no host", "body"],
)
def test_requests_before_an_invalid_one_get_responses(served: Served, photo: bytes, garbage: bytes) -> None:
    one = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(photo) + photo
    response = exchange(served, one + GET + one + garbage + GET)
    assert _statuses(response) == [200, 200, 200, 400]
    assert response.count(b'"label"') == 2 and response.count(b'"live"') == 1


def test_many_pipelined_requests_get_responses(served: Served) -> None:
    """A single read of the socket contains thousands of them, and the server parses a few at a time."""
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(GET * 3000)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
    assert _statuses(received) == [200] * 3000


def test_error_response_reaches_a_client_that_still_sends(served: Served) -> None:
    """Closing a connection with unread data would reset it and destroy the response."""
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n")
        for _ in range(100):
            connection.sendall(bytes(20_000))
            time.sleep(0.002)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")
