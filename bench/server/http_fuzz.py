"""HTTP fuzzing of a server: mutated requests, large malicious bodies, slow uploads. ``bench.server.liveness`` and the tests use them."""

from __future__ import annotations

import base64
import gzip
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

_THREADS = 8
# One of this many requests is large.
_LARGE_EVERY = 100


def valid_requests(name: str, photo: bytes, side: int) -> list[bytes]:
    """Return valid requests for the model ``name`` with the input ``[n, 3, side, side]``."""
    image = base64.b64encode(photo).decode()
    inputs = [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [image]}]
    packed = len(photo).to_bytes(4, "little") + photo
    header = json.dumps({"inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}]})
    values = {"name": "input", "shape": [1, 3, side, side], "datatype": "FP32", "data": [0.5] * (3 * side * side)}
    tensor = json.dumps({"id": "a", "inputs": [values]})
    outputs = [{"name": "scores", "parameters": {"classification": 2, "binary_data": True}}, {"name": "logits"}]
    infer = f"/v2/models/{name}/infer"
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + photo + b"\r\n--b--\r\n"
    requests = [
        ("GET", "/v2/health/ready", [], b""),
        ("GET", "/v2", [], b""),
        ("GET", f"/v2/models/{name}", [], b""),
        ("GET", "/metrics", [], b""),
        ("GET", "/openapi.json", [], b""),
        ("GET", "/models", [], b""),
        ("GET", "/", [], b""),
        ("POST", "/predict", [], photo),
        ("POST", "/predict?version=1", ["Content-Encoding: gzip"], gzip.compress(photo)),
        ("POST", "/predict", ["Content-Type: multipart/form-data; boundary=b"], form),
        ("POST", infer, [], json.dumps({"inputs": inputs}).encode()),
        ("POST", infer, [], tensor.encode()),
        ("POST", infer, [], json.dumps({"inputs": inputs, "outputs": outputs}).encode()),
        ("POST", infer, [f"Inference-Header-Content-Length: {len(header)}"], header.encode() + packed),
        ("POST", infer, ["Inference-Header-Content-Length: 0"], photo),
        ("POST", infer, ["Request-Timeout-Ms: 500", "X-Request-Id: seven"], tensor.encode()),
    ]
    return [_request(*parts) for parts in requests]


def _request(method: str, path: str, headers: Sequence[str], body: bytes) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


def large_requests(name: str, side: int) -> list[bytes]:
    """Return requests that are expensive to parse: bodies near the limit of 16 MB, and many pipelined requests or chunks."""
    infer = f"/v2/models/{name}/infer"

    def tensor(data: bytes, count: int = 1) -> bytes:
        head = f'{{"inputs": [{{"name": "input", "shape": [{count}, 3, {side}, {side}], "datatype": "FP32", "data": ['.encode()
        return _request("POST", infer, [], head + data + b"]}]}")

    empties = b'{"inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 15000000}}]}'
    form = b"--b\r\n\r\n" + b"\r\n--" * 3_500_000 + b"\r\n--b--\r\n"
    zeros = gzip.compress(b'{"inputs": [' + b"0," * 7_000_000 + b"0]}", 1)
    return [
        tensor(b"0," * 7_000_000 + b"0"),
        tensor(b"[]," * 5_000_000 + b"0"),
        tensor(b'"a",' * 3_500_000 + b"0"),
        tensor(b"0.12345678901234567," * (16 * 3 * side * side - 1) + b"0.5", 16),
        tensor(b"[" * 15_000_000),
        tensor(b'"' + b"a" * 100_000 + b'"' + b',"b"' * 5_000),
        tensor(b'{"a":0},' * 1_800_000 + b"0"),
        tensor(b"9" * 15_000_000),
        tensor(b'"' + b"\\u0041" * 2_500_000 + b'"'),
        _request("POST", infer, [f"Inference-Header-Content-Length: {len(empties)}"], empties + bytes(15_000_000)),
        _request("POST", "/predict", ["Content-Type: multipart/form-data; boundary=b"], form),
        _request("POST", infer, ["Content-Encoding: gzip"], zeros),
        _request("POST", "/predict", [], bytes(15_900_000)),
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 5_000,
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 16_000 + b"0\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;" + b"e" * 8_000_000 + b"\r\na\r\n0\r\n\r\n",
    ]


_ODD = [
    b"\0",
    b"\r\n",
    b"\xff",
    b"-1",
    b"99999999999999999999",
    b"{",
    b"[" * 50,
    b'"',
    b"NaN",
    b"1e400",
    b"%00",
    b"../",
    b"null",
    b"0",
    b"\x1b[",
]


def broken(request: bytes, chance: random.Random) -> bytes:
    """Mutate ``request`` in one to four places, mostly in the head or the JSON: change, remove, repeat or insert bytes."""
    data = bytearray(request)
    for _ in range(chance.randint(1, 4)):
        place = min(int(chance.expovariate(1 / 150)), max(0, len(data) - 1))
        match chance.randint(0, 4):
            case 0:
                data[place] = chance.randrange(256)
            case 1:
                del data[place : place + chance.randint(1, 40)]
            case 2:
                data[place:place] = data[place : place + chance.randint(1, 200)]
            case 3:
                data[place:place] = chance.choice(_ODD)
            case _:
                del data[chance.randrange(len(data) + 1) :]
        data = data or bytearray(b"x")
    return bytes(data)


def send_request(port: int, data: bytes, timeout: float = 0.25) -> bytes:
    """Send ``data`` and return the status of the first response. Empty: the connection was closed. ``late``: no response in time."""
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        try:
            connection.sendall(data)
            found = connection.recv(65536)
        except TimeoutError:
            # The mutation enlarged a length. The server waits for the rest of the body, which is correct.
            return b"late"
        return found[9:12]
    return b""


def fuzz(port: int, valid: Sequence[bytes], large: Sequence[bytes], count: int) -> tuple[Counter[bytes], list[bytes]]:
    """Send ``count`` mutated and large requests from eight threads.

    Returns:
        the statuses, and the beginnings of requests with an unexpected status 5xx. 504 is expected for a mutated deadline, and 501 for a
        mutated ``Transfer-Encoding``.
    """
    statuses: Counter[bytes] = Counter()
    unexpected: list[bytes] = []
    lock = threading.Lock()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for index in range(count // _THREADS):
            if large and index % _LARGE_EVERY == seed:
                data = chance.choice(large)
                status = send_request(port, data, 20.0)
            else:
                data = broken(chance.choice(valid), chance)
                status = send_request(port, data)
            expected = (status == b"504" and b"imeout" in data) or (status == b"501" and b"ncoding" in data)
            with lock:
                statuses[status] += 1
                if status[:1] == b"5" and not expected:
                    unexpected.append(status + b" " + data[:300])

    _run_threads([lambda seed=seed: work(seed) for seed in range(_THREADS)])  # type: ignore[misc]
    return statuses, unexpected


def _run_threads(works: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def slow_uploads(port: int, count: int) -> Iterator[None]:
    """Run ``count`` clients that send a body at 2 bytes per second. A client that is disconnected starts again."""
    stop = threading.Event()

    def drip() -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 65000\r\n\r\n")
                while not stop.wait(0.5):
                    connection.sendall(b"a")

    threads = [threading.Thread(target=drip) for _ in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
