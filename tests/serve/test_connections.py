"""What a client can do to a connection: each ends in an answer or in a closed connection, and others are still served."""

from __future__ import annotations

import io
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from bench.memory import family_mb
from edgetl.core.bundle import Bundle
from tests.serve.serving import Served, serving, until
from tests.serve.test_access import certificate


def talk(served: Served, *parts: bytes, timeout: float = 5.0, pause: float = 0.0) -> bytes:
    """Send the parts, and read until the server closes or says nothing more."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=timeout) as connection:
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        return _rest(connection)


def _rest(connection: socket.socket) -> bytes:
    found = b""
    with suppress(TimeoutError, ConnectionError):
        while part := connection.recv(65536):
            found += part
    return found


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
        "C8 negative length", "C8 length with letters", "C8 two lengths", "C8 length and chunks", "C8 chunk without its end",
        "C8 chunk size no number", "C8 chunk size too long", "trailer", "TLS to plain", "version", "header name", "nothing after",
    ],
)  # fmt: skip
def test_what_is_no_http_gets_400_and_is_cut_off(served: Served, request_bytes: bytes) -> None:
    answer = talk(served, request_bytes + GET)
    assert answer.count(b"HTTP/1.1 ") <= 2 and answer.count(b"HTTP/1.1 200") == 0, "no request hides in another"
    head, _, body = answer.rpartition(b"\r\n\r\n")
    assert b" 400 " in head and b"connection: close" in head and set(json.loads(body)) == {"error"}
    assert served.ready()


def test_what_follows_a_short_body_is_a_request_of_its_own(served: Served) -> None:
    answer = talk(served, _post("Content-Length: 2", body=b"{}") + b"xyz" + GET)
    assert answer.count(b"HTTP/1.1 400") >= 1 and b"HTTP/1.1 200" not in answer


@pytest.mark.parametrize(("size", "status"), [(20_000, 431), (200_000, 431)], ids=["many headers", "one header that goes on"])
def test_a_head_is_limited(served: Served, size: int, status: int) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (number, b"v" * 90) for number in range(500)) if size < 100_000 else b"X: " + b"v" * size
    answer = talk(served, b"GET / HTTP/1.1\r\nHost: x\r\n" + lines, timeout=3)
    assert b" %d " % status in answer.split(b"\r\n")[0]


def test_an_address_is_limited(served: Served) -> None:
    assert b" 414 " in talk(served, b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 65_536)).split(b"\r\n")[0]


def test_addresses_reach_no_file_and_are_told_in_json(served: Served) -> None:
    with httpx.Client() as web:
        for path in (
            "/%2e%2e/%2e%2e/etc/passwd",
            "//etc/passwd",
            "/v2/models/%00",
            "/v2//health/live",
            "/..%2fmanifest.json",
            "/v2/models/a%0ab",
        ):
            answer = web.send(httpx.Request("GET", httpx.URL(served.url, raw_path=path.encode())))
            assert answer.status_code == 404 and set(answer.json()) == {"error"}, path


@pytest.mark.parametrize("times", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_body_of_very_many_chunks_is_cut_off_and_costs_no_memory(served: Served, times: int) -> None:
    body = b"1\r\na\r\n" * 1_000_000
    talk(served, _post("Transfer-Encoding: chunked"), body)
    before = family_mb(served.process_id)
    for _ in range(times):
        answer = talk(served, _post("Transfer-Encoding: chunked"), body)
        assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    assert family_mb(served.process_id) - before <= 2**20 / 1e6
    assert served.ready()


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_not_read_to_its_end(served: Served, declared: bool) -> None:
    head = "Content-Length: 10000000000" if declared else "Transfer-Encoding: chunked"
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(_post(head))
        sent = 0
        with suppress(ConnectionError, TimeoutError):
            while sent < 200_000_000:
                connection.sendall((b"" if declared else b"10000\r\n") + bytes(65_536) + (b"" if declared else b"\r\n"))
                sent += 65_536
        answer = _rest(connection)
    assert sent < 60_000_000, "the server stopped reading"
    assert answer == b"" or b" 413 " in answer.split(b"\r\n")[0]


def test_413_arrives_before_the_body_is_sent(served: Served) -> None:
    answer = talk(served, _post("Content-Length: 99999999", "Expect: 100-continue"))
    assert b" 413 " in answer.split(b"\r\n")[0] and b"100 Continue" not in answer and b"is larger than 16000000 bytes" in answer


@pytest.fixture(scope="module")
def slow_client(served: Served) -> Iterator[None]:
    """Somebody who sends a head byte by byte, all the time."""
    stop = threading.Event()

    def drip() -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
                for byte in GET * 100:
                    connection.sendall(bytes([byte]))
                    if stop.wait(0.5):
                        return

    threads = [threading.Thread(target=drip) for _ in range(20)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("slow_client")
def test_a_head_that_comes_too_slowly_is_cut_off(served: Served, photo: bytes) -> None:
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        with suppress(ConnectionError):
            for _ in range(60):
                connection.sendall(b"a")
                time.sleep(0.25)
        answer = _rest(connection)
    assert b" 408 " in answer.split(b"\r\n")[0] and 9 < time.monotonic() - begin < 25
    assert httpx.post(f"{served.url}/predict", content=photo).status_code == 200


@pytest.mark.slow
def test_a_body_that_takes_too_long_is_cut_off_whatever_its_rate(served: Served) -> None:
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(_post("Content-Length: 1000000"))
        with suppress(ConnectionError):
            for _ in range(40):
                connection.sendall(b"a" * 2000)
                time.sleep(1.0)
        answer = _rest(connection)
    assert b" 408 " in answer.split(b"\r\n")[0] and b"within 30 s" in answer and 29 < time.monotonic() - begin < 60


def _few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))


@pytest.mark.parametrize("limited", [False, True])
def test_a_thousand_idle_connections_leave_room_for_a_healthy_client(bundle: Bundle, photo: bytes, limited: bool) -> None:
    """Also where the system allows the server only 200 descriptors: those that wait longest go."""
    with serving(bundle.path, prepare=_few_descriptors if limited else None) as served:
        idle: list[socket.socket] = []
        try:
            idle += [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(1000)]
            for _ in range(5):
                assert httpx.post(f"{served.url}/predict", content=photo, timeout=10).status_code == 200
        finally:
            for connection in idle:
                connection.close()
        assert "Traceback" not in served.said()


def test_clients_that_go_away_leave_nothing_behind(served: Served, photo: bytes) -> None:
    """Before, during and after the work."""
    whole = _post(f"Content-Length: {len(photo)}", body=photo)
    for cut in (10, len(whole) // 2, len(whole)):
        for pause in (0.0, 0.005, 0.05):
            for _ in range(5):
                with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
                    connection.sendall(whole[:cut])
                    time.sleep(pause)
    until(lambda: served.metric("edgetl_inflight") == 0, seconds=10)
    assert served.metric("edgetl_queue_depth") == 0 and "Traceback" not in served.said()
    assert httpx.post(f"{served.url}/predict", content=photo).status_code == 200


def test_a_request_that_pipelines_is_answered_in_order(served: Served, photo: bytes) -> None:
    one = _post(f"Content-Length: {len(photo)}", body=photo)
    answer = talk(served, one + GET + one, timeout=2)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.index(b'"label"') < answer.index(b'"live"') < answer.rindex(b'"label"')


def _open(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=45)


def test_a_request_that_would_upgrade_is_refused_whole(served: Served, photo: bytes) -> None:
    """The parser would take its body for the next request."""
    body = GET
    answer = talk(served, _post("Connection: Upgrade", "Upgrade: h2c", f"Content-Length: {len(body)}"), body, timeout=2)
    assert answer.count(b"HTTP/1.1 400") == 1 and b"HTTP/1.1 200" not in answer and b"without upgrades" in answer


def test_a_client_that_only_stops_sending_still_gets_its_answer(served: Served, photo: bytes) -> None:
    with _open(served) as connection:
        connection.sendall(_post(f"Content-Length: {len(photo)}", body=photo))
        connection.shutdown(socket.SHUT_WR)
        assert _rest(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_a_connection_answered_before_its_body_came_is_closed_like_any(served: Served) -> None:
    with _open(served) as connection:
        connection.sendall(_post("Content-Length: 4", path="/nothing"))
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 404")
        connection.sendall(b"abcd")
        begin = time.monotonic()
        assert connection.recv(10) == b"" and 25 < time.monotonic() - begin < 35


@pytest.mark.slow
def test_clients_that_do_not_read_hold_up_nobody_for_long(bundle: Bundle, photo: bytes) -> None:
    with serving(bundle.path, options=("--threads", "1", "--queue", "2")) as served:
        deaf = [_open(served) for _ in range(3)]
        for connection in deaf:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with suppress(TimeoutError, ConnectionError):
                connection.settimeout(2)
                connection.sendall(b"GET /page.css HTTP/1.1\r\nHost: x\r\n\r\n" * 3000)
        until(lambda: httpx.post(f"{served.url}/predict", content=photo).status_code == 200, seconds=45)
        for connection in deaf:
            connection.close()


def test_an_id_of_half_a_character_is_refused(served: Served, bundle: Bundle) -> None:
    body = b'{"id": "\\ud800", "inputs": []}'
    answer = httpx.post(f"{served.url}/v2/models/{bundle.manifest.name}/infer", content=body)
    assert answer.status_code == 400 and set(answer.json()) == {"error"}


@pytest.mark.parametrize("content", [b'{"inputs": [' + b"[]," * 5_000_000 + b"[]]}", b'{"inputs": [' + b"[0]," * 3_500_000 + b"0]}"])
def test_very_many_small_lists_are_refused_at_once(served: Served, bundle: Bundle, content: bytes) -> None:
    begin = time.monotonic()
    answer = httpx.post(f"{served.url}/v2/models/{bundle.manifest.name}/infer", content=content, timeout=30)
    assert answer.status_code == 400 and "more lists, objects or values" in answer.json()["error"] and time.monotonic() - begin < 2


def test_a_form_of_very_many_parts_is_refused_at_once(served: Served) -> None:
    body = b"--b\r\n\r\n\r\n" * 1_000_000 + b"--b--\r\n"
    begin = time.monotonic()
    answer = httpx.post(f"{served.url}/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}, timeout=30)
    assert answer.status_code == 400 and "Send exactly one file" in answer.json()["error"] and time.monotonic() - begin < 2


def test_many_huge_images_in_one_request_are_refused_before_they_fill_the_memory(served: Served, bundle: Bundle) -> None:
    buffer = io.BytesIO()
    Image.new("L", (6000, 6000)).save(buffer, "PNG")
    packed = (len(buffer.getvalue()).to_bytes(4, "little") + buffer.getvalue()) * 8
    item = {"name": "input", "shape": [8], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}
    header = json.dumps({"inputs": [item]}).encode()
    answer = httpx.post(
        f"{served.url}/v2/models/{bundle.manifest.name}/infer",
        content=header + packed,
        headers={"Inference-Header-Content-Length": str(len(header))},
        timeout=60,
    )
    assert answer.status_code == 400 and "pixels in total" in answer.json()["error"]


@pytest.mark.parametrize("tls", [False, True])
def test_connections_that_say_nothing_leave_descriptors_for_others(bundle: Bundle, tmp_path: Path, tls: bool) -> None:
    """With TLS also those that never begin to speak it."""
    options = [str(part) for pair in zip(("--tls-cert", "--tls-key"), certificate(tmp_path), strict=True) for part in pair] if tls else []
    with serving(bundle.path, options=options, prepare=_few_descriptors, scheme="https" if tls else "http") as served:
        silent = [_open(served) for _ in range(400)]
        until(lambda: _lives(served), seconds=20)
        for connection in silent:
            connection.close()
        assert len(served.said().splitlines()) < 40


def _lives(served: Served) -> bool:
    try:
        return httpx.get(f"{served.url}/v2/health/live", verify=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
