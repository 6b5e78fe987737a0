"""Very many requests: invented ones, and the same one for long. ``EDGETL_SOAK_S`` says for how many seconds (600 by default)."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from bench.memory import family, family_mb
from bench.overload import open_loop
from edgetl.core.bundle import Bundle
from tests.serve.serving import Served, serving
from tests.serve.test_drain import Clients

SOAK_S = float(os.environ.get("EDGETL_SOAK_S", "600"))


def _spellings(name: str, photo: bytes) -> list[bytes]:
    """Sound requests, from which broken ones are made."""
    image = base64.b64encode(photo).decode()
    inputs = [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [image]}]
    packed = len(photo).to_bytes(4, "little") + photo
    header = json.dumps({"inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}]})
    tensor = json.dumps({"id": "a", "inputs": [{"name": "input", "shape": [1, 3, 48, 48], "datatype": "FP32", "data": [0.5] * 6912}]})
    wanted = [{"name": "scores", "parameters": {"classification": 2, "binary_data": True}}, {"name": "logits"}]
    infer = f"/v2/models/{name}/infer"
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + photo + b"\r\n--b--\r\n"
    sent = [
        ("GET", "/v2/health/ready", [], b""), ("GET", "/v2", [], b""), ("GET", f"/v2/models/{name}", [], b""),
        ("GET", "/metrics", [], b""), ("GET", "/openapi.json", [], b""), ("GET", "/models", [], b""), ("GET", "/", [], b""),
        ("POST", "/predict", [], photo), ("POST", "/predict?version=1", ["Content-Encoding: gzip"], gzip.compress(photo)),
        ("POST", "/predict", ["Content-Type: multipart/form-data; boundary=b"], form),
        ("POST", infer, [], json.dumps({"inputs": inputs}).encode()), ("POST", infer, [], tensor.encode()),
        ("POST", infer, [], json.dumps({"inputs": inputs, "outputs": wanted}).encode()),
        ("POST", infer, [f"Inference-Header-Content-Length: {len(header)}"], header.encode() + packed),
        ("POST", infer, ["Inference-Header-Content-Length: 0"], photo),
        ("POST", infer, ["Request-Timeout-Ms: 500", "X-Request-Id: seven"], tensor.encode()),
    ]  # fmt: skip
    return [
        "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body
        for method, path, headers, body in sent
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


def _broken(spelling: bytes, chance: random.Random) -> bytes:
    """One to four changes: bytes flipped, cut out, doubled or put in, mostly in the head or the JSON."""
    data = bytearray(spelling)
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


def _ask(port: int, data: bytes, timeout: float = 0.25) -> bytes:
    """The status of the first answer; empty where the connection was closed, ``late`` where nothing came."""
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        try:
            connection.sendall(data)
            found = connection.recv(65536)
        except TimeoutError:
            # A length that was made larger: the server waits for the rest, as it should.
            return b"late"
        return found[9:12]
    return b""


@pytest.mark.parametrize("count", [600, pytest.param(50_000, marks=pytest.mark.slow)])
def test_invented_requests_crash_nothing_and_cause_no_5xx(bundle: Bundle, photo: bytes, count: int) -> None:
    """C28. A broken deadline may be one that passed (504)."""
    sound = _spellings(bundle.manifest.name, photo)
    with serving(bundle.path) as served:
        assert {_ask(served.port, data, 10.0) for data in sound} == {b"200"}
        codes: Counter[bytes] = Counter()
        lock = threading.Lock()

        def work(seed: int) -> None:
            chance, mine = random.Random(seed), Counter[bytes]()
            for _ in range(count // 8):
                data = _broken(chance.choice(sound), chance)
                code = _ask(served.port, data)
                if code[:1] == b"5" and not (code == b"504" and b"imeout" in data):
                    print(code, data[:600])
                mine[code] += 1
            with lock:
                codes.update(mine)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(dict(codes))
        assert codes.total() == count and not {code for code in codes if code[:1] == b"5"} - {b"504"}
        assert codes[b"200"] and codes[b"400"] and codes[b"404"]
        assert {_ask(served.port, data, 10.0) for data in sound} == {b"200"}
        assert served.metric("edgetl_workers_replaced_total") == 0 and "Traceback" not in served.said() and served.ready()


@pytest.mark.parametrize("seconds", [4.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_far_more_than_it_can_do_is_turned_away_and_leaves_no_trace(bundle: Bundle, photo: bytes, seconds: float) -> None:
    """C14: an open loop; the figures are those of ``bench/overload.py``."""
    with serving(bundle.path, options=("--threads", "1", "--queue", "20")) as served:
        asyncio.run(open_loop(served.port, photo, 200.0, 1.0))
        memory = family_mb(served.process_id)
        seen = asyncio.run(open_loop(served.port, photo, 3000.0, seconds))
        assert set(seen.times) == {200, 503} and not seen.without_retry_after
        assert family_mb(served.process_id) - memory < 50
        time.sleep(2.0)
        after = asyncio.run(open_loop(served.port, photo, 50.0, 2.0))
        assert set(after.times) == {200}
        assert served.metric("edgetl_inflight") == 0 and "Traceback" not in served.said()


def _held(served: Served) -> tuple[int, int]:
    """Descriptors and threads of the server and its workers."""
    pids = family(served.process_id)
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids), sum(
        len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids
    )


@pytest.mark.parametrize("seconds", [4.0, pytest.param(SOAK_S, marks=pytest.mark.slow)], ids=["short", "long"])
def test_a_server_that_works_for_long_does_not_grow(bundle: Bundle, photo: bytes, seconds: float) -> None:
    """C27, at about 70 % of what it can do: one of two threads busy all the time."""
    with serving(bundle.path, options=("--threads", "2")) as served:
        clients = Clients(served, photo, 2)
        time.sleep(min(60.0, seconds / 2))
        memory, held = family_mb(served.process_id), _held(served)
        time.sleep(seconds)
        grown, now = family_mb(served.process_id) - memory, _held(served)
        clients.end()
        print(f"{clients.codes.total()} answers, {grown:+.1f} MB, descriptors and threads {held} -> {now}")
        assert set(clients.codes) == {200} and not clients.lost
        assert grown < 5 and now[0] <= held[0] + 4 and now[1] <= held[1] + 2
