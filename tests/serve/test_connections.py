"""Connections with malformed, large, slow or interrupted requests. Other clients still get responses."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from PIL import Image

from bench.memory import family_mb
from edgetl.core.bundle import Bundle
from tests.serve.serving import Served, serving, until


def exchange(served: Served, *parts: bytes, pause: float = 0.0, half_close: bool = False) -> bytes:
    """Send the parts, and read until the server closes the connection. ``half_close`` closes the sending side first."""
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    received = b""
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            received += part
    return received


def _post(*headers: str, body: bytes = b"", path: str = "/predict") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode() + body


GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        _post("Content-Length: -1"),
        _post("Content-Length: 4x", body=b"abcd"),
        _post("Content-Length: 4", "Content-Length: 5", body=b"abcde"),
        _post("Content-Length: 4", "Transfer-Encoding: chunked", body=b"4\r\nabcd\r\n0\r\n\r\n"),
        _post("Transfer-Encoding: chunked", body=b"4\r\nabcdXX0\r\n\r\n"),
        _post("Transfer-Encoding: chunked", body=b"zz\r\nabcd\r\n0\r\n\r\n"),
        _post("Transfer-Encoding: chunked", body=b"fffffffffffffffff\r\nabcd\r\n0\r\n\r\n"),
        _post("Transfer-Encoding: chunked", body=b"4\r\nabcd\r\n0\r\nTrailer: x\r\n\r\n"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n" + b"\0" * 10,
    ],
    ids=[
        "negative length",
        "length with letters",
        "two lengths",
        "length and chunks",
        "chunk without its end",
        "chunk size not a number",
        "chunk size too long",
        "trailer",
        "TLS to plain",
        "version",
        "header name",
        "bare LF",
    ],
)
def test_malformed_request_gets_400_and_closes_the_connection(served: Served, request_bytes: bytes) -> None:
    response = exchange(served, request_bytes + GET)
    assert response.count(b"HTTP/1.1 ") <= 2 and response.count(b"HTTP/1.1 200") == 0, "the next request is not parsed"
    head, _, body = response.rpartition(b"\r\n\r\n")
    assert b" 400 " in head and b"connection: close" in head and set(json.loads(body)) == {"error"}
    assert served.ready()


def test_bytes_after_a_short_body_are_the_next_request(served: Served) -> None:
    response = exchange(served, _post("Content-Length: 2", body=b"{}") + b"xyz" + GET)
    assert response.count(b"HTTP/1.1 400") >= 1 and b"HTTP/1.1 200" not in response


@pytest.mark.parametrize(
    "lines",
    [b"".join(b"X-%d: %s\r\n" % (number, b"v" * 90) for number in range(500)), b"X: " + b"v" * 200_000],
    ids=["many headers", "long header"],
)
def test_large_head_gets_431(served: Served, lines: bytes) -> None:
    response = exchange(served, b"GET / HTTP/1.1\r\nHost: x\r\n" + lines)
    assert b" 431 " in response.split(b"\r\n")[0]


def test_long_url_gets_414(served: Served) -> None:
    assert b" 414 " in exchange(served, b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 65_536)).split(b"\r\n")[0]


def test_unknown_path_gets_404_and_reaches_no_file(served: Served) -> None:
    with httpx.Client(timeout=None) as web:
        for path in (
            "/%2e%2e/%2e%2e/etc/passwd",
            "//etc/passwd",
            "/v2/models/%00",
            "/v2//health/live",
            "/..%2fmanifest.json",
            "/v2/models/a%0ab",
        ):
            response = web.send(httpx.Request("GET", httpx.URL(served.url, raw_path=path.encode())))
            assert response.status_code == 404 and set(response.json()) == {"error"}, path


@pytest.mark.parametrize("times", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_body_of_many_chunks_is_rejected_without_using_memory(served: Served, times: int) -> None:
    body = b"1\r\na\r\n" * 1_000_000
    exchange(served, _post("Transfer-Encoding: chunked"), body)
    before = family_mb(served.process_id)
    for _ in range(times):
        response = exchange(served, _post("Transfer-Encoding: chunked"), body)
        assert response == b"" or b" 400 " in response.split(b"\r\n")[0]
    assert family_mb(served.process_id) - before <= 2**20 / 1e6
    assert served.ready()


@pytest.mark.parametrize("declared", [True, False], ids=["Content-Length", "chunks"])
def test_server_stops_reading_a_body_over_the_limit(served: Served, declared: bool) -> None:
    head = "Content-Length: 10000000000" if declared else "Transfer-Encoding: chunked"
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(_post(head))
        sent = 0
        with suppress(ConnectionError):
            while sent < 200_000_000:
                connection.sendall((b"" if declared else b"10000\r\n") + bytes(65_536) + (b"" if declared else b"\r\n"))
                sent += 65_536
        response = read_all(connection)
    assert sent < 60_000_000
    assert response == b"" or b" 413 " in response.split(b"\r\n")[0]


def test_413_is_sent_before_the_body_is_read(served: Served) -> None:
    response = exchange(served, _post("Content-Length: 99999999", "Expect: 100-continue"))
    assert b" 413 " in response.split(b"\r\n")[0] and b"100 Continue" not in response and b"is larger than 16000000 bytes" in response


@pytest.fixture(scope="module")
def slow_clients(served: Served) -> Iterator[None]:
    """Twenty clients that send their request head byte by byte."""
    stop = threading.Event()

    def send_slowly() -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", served.port)) as connection:
                for byte in GET * 100:
                    connection.sendall(bytes([byte]))
                    if stop.wait(0.5):
                        return

    threads = [threading.Thread(target=send_slowly) for _ in range(20)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("slow_clients")
def test_slow_head_gets_408(served: Served, photo: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        response = read_all(connection)
    assert b" 408 " in response.split(b"\r\n")[0] and b"did not arrive within 10 s" in response
    assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200


@pytest.mark.slow
def test_slow_body_gets_408_at_any_rate(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(_post("Content-Length: 1000000"))
        with suppress(ConnectionError):
            for _ in range(40):
                connection.sendall(b"a" * 2000)
                time.sleep(1.0)
        response = read_all(connection)
    assert b" 408 " in response.split(b"\r\n")[0] and b"within 30 s" in response


@pytest.mark.parametrize("which", ["served", "small_server"])
def test_idle_connections_leave_room_for_other_clients(request: pytest.FixtureRequest, photo: bytes, which: str) -> None:
    """With at most 200 descriptors, the server closes the connections that have waited longest."""
    served: Served = request.getfixturevalue(which)
    idle: list[socket.socket] = []
    try:
        idle += [socket.create_connection(("127.0.0.1", served.port)) for _ in range(500)]
        for _ in range(5):
            assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200
    finally:
        for connection in idle:
            connection.close()
    assert "Traceback" not in served.log()


def test_disconnected_clients_leave_no_request_behind(served: Served, photo: bytes) -> None:
    """The clients disconnect before, during and after the computation."""
    request = _post(f"Content-Length: {len(photo)}", body=photo)
    for cut in (10, len(request) // 2, len(request)):
        for pause in (0.0, 0.005, 0.05):
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", served.port)) as connection:
                    connection.sendall(request[:cut])
                    time.sleep(pause)
    until(lambda: served.metric("edgetl_inflight") == 0 and served.metric("edgetl_queue_depth") == 0)
    assert "Traceback" not in served.log()
    assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200


def test_pipelined_requests_get_their_responses_in_order(served: Served, photo: bytes) -> None:
    one = _post(f"Content-Length: {len(photo)}", body=photo)
    response = exchange(served, one + GET + one, half_close=True)
    assert response.count(b"HTTP/1.1 200") == 3
    assert response.index(b'"label"') < response.index(b'"live"') < response.rindex(b'"label"')


def _open(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port))


def test_upgrade_is_rejected_with_its_body(served: Served) -> None:
    """The parser would treat the body as the next request."""
    response = exchange(served, _post("Connection: Upgrade", "Upgrade: h2c", f"Content-Length: {len(GET)}"), GET)
    assert response.count(b"HTTP/1.1 400") == 1 and b"HTTP/1.1 200" not in response and b"without upgrades" in response


def test_half_closed_connection_gets_its_response(served: Served, photo: bytes) -> None:
    assert exchange(served, _post(f"Content-Length: {len(photo)}", body=photo), half_close=True).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_connection_with_a_response_before_its_body_is_closed_after_the_keep_alive_time(served: Served) -> None:
    with _open(served) as connection:
        connection.sendall(_post("Content-Length: 4", path="/nothing"))
        response = b""
        while not response.endswith(b"}"):
            response += connection.recv(65536)
        assert response.startswith(b"HTTP/1.1 404")
        connection.sendall(b"abcd")
        assert connection.recv(10) == b""


@pytest.mark.slow
def test_clients_that_do_not_read_delay_no_other_client(bundle: Bundle, photo: bytes) -> None:
    with serving(bundle.path, options=("--threads", "1", "--queue", "2")) as served:
        blocked = [_open(served) for _ in range(3)]
        for connection in blocked:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with suppress(TimeoutError, ConnectionError):
                connection.settimeout(2)
                connection.sendall(b"GET /page.css HTTP/1.1\r\nHost: x\r\n\r\n" * 3000)
        until(lambda: httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200)
        for connection in blocked:
            connection.close()


def _infer(served: Served, bundle: Bundle, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(f"{served.url}/v2/models/{bundle.manifest.name}/infer", content=content, headers=headers, timeout=None)


def test_id_with_an_unpaired_surrogate_is_rejected(served: Served, bundle: Bundle) -> None:
    response = _infer(served, bundle, b'{"id": "\\ud800", "inputs": []}')
    assert response.status_code == 400 and set(response.json()) == {"error"}


@pytest.mark.parametrize(
    "content",
    [b'{"inputs": [' + b"[]," * 5_000_000 + b"[]]}", b'{"inputs": [' + b"[0]," * 3_500_000 + b"0]}"],
    ids=["empty lists", "lists of one number"],
)
def test_many_small_lists_are_rejected_before_parsing(served: Served, bundle: Bundle, content: bytes) -> None:
    response = _infer(served, bundle, content)
    assert response.status_code == 400 and "more lists, objects or values" in response.json()["error"]


def test_form_of_many_parts_is_rejected(served: Served) -> None:
    body = b"--b\r\n\r\n\r\n" * 1_000_000 + b"--b--\r\n"
    response = httpx.post(f"{served.url}/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}, timeout=None)
    assert response.status_code == 400 and "more than one file" in response.json()["error"]


def test_many_large_images_in_a_request_are_rejected(served: Served, bundle: Bundle) -> None:
    buffer = io.BytesIO()
    Image.new("L", (6000, 6000)).save(buffer, "PNG")
    packed = (len(buffer.getvalue()).to_bytes(4, "little") + buffer.getvalue()) * 8
    item = {"name": "input", "shape": [8], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}
    header = json.dumps({"inputs": [item]}).encode()
    response = _infer(served, bundle, header + packed, {"Inference-Header-Content-Length": str(len(header))})
    assert response.status_code == 400 and "pixels in total" in response.json()["error"]


@pytest.mark.parametrize("which", ["small_server", "tls_server"])
def test_silent_connections_leave_descriptors_for_other_clients(request: pytest.FixtureRequest, which: str) -> None:
    """The TLS clients never begin their handshake."""
    served: Served = request.getfixturevalue(which)
    lines = len(served.log().splitlines())
    silent = [_open(served) for _ in range(400)]
    until(lambda: _is_live(served))
    for connection in silent:
        connection.close()
    assert len(served.log().splitlines()) < lines + 40


def _is_live(served: Served) -> bool:
    try:
        return httpx.get(f"{served.url}/v2/health/live", verify=False, timeout=20).status_code == 200
    except httpx.HTTPError:
        return False
