"""``python -m bench.liveness BUNDLE``: blocking of the server's event loop, and of healthy clients, by hostile requests.

First mutated and large requests are sent, then 70 uploads at 2 bytes a second beside a healthy client. Meanwhile a separate process
requests ``/v2/health/live`` every 5 ms on one connection. Its longest wait bounds the time that the event loop was blocked; delays of the
host's scheduler are included. Run it on an idle host.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

from bench.http_fuzz import fuzz, large_requests, slow_uploads, sound_requests
from bench.memory import family_mb
from bench.serve import end, start
from edgetl.core.bundle import open_bundle
from edgetl.core.system.host import describe_host

PORT = 8320
_EVERY_S = 0.005
_ASK = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def probe(port: int, seconds: float) -> None:
    """Print the milliseconds of every answer as JSON."""
    waits = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        stop = time.monotonic() + seconds
        while (begin := time.monotonic()) < stop and not _ended():
            connection.sendall(_ASK)
            found = b""
            while not found.endswith(b'{"live":true}'):
                part = connection.recv(4096)
                assert part, "the server closed the connection of the probe"
                found += part
            waits.append((time.monotonic() - begin) * 1000)
            time.sleep(_EVERY_S)
    print(json.dumps(waits))


def _ended() -> bool:
    """True if the parent closed the standard input."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


class Probe:
    """The probe's process, from its construction to ``end``."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "bench.liveness", ".", "--probe", str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        time.sleep(1.0)

    def end(self) -> list[float]:
        """Milliseconds of every answer, sorted."""
        output, _ = self._process.communicate()
        return sorted(json.loads(output))


def _print_waits(waits: list[float]) -> None:
    print(
        f"  liveness probe: {len(waits)} answers, p50 {waits[len(waits) // 2]:.1f} ms, p99 {waits[int(len(waits) * 0.99)]:.1f} ms, "
        f"worst gap {waits[-1]:.1f} ms"
    )


def _healthy(url: str, photo: bytes, seconds: float) -> Counter[int]:
    """Statuses of a client that sends one request after another; 0 is no response."""
    statuses: Counter[int] = Counter()
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", photo), timeout=10) as answer:
                statuses[answer.status] += 1
        except urllib.error.HTTPError as error:
            statuses[error.code] += 1
            error.close()
        except OSError:
            statuses[0] += 1
    return statuses


def liveness(path: Path, variant: str, requests: int, uploads: int, seconds: float) -> None:
    """Print what happens."""
    bundle = open_bundle(path)
    name, side = bundle.manifest.name, bundle.manifest.preprocess.input_size[0]
    photo = (bundle.path / bundle.manifest.golden[0].image.path).read_bytes()
    options = ["--variant", variant, "--port", str(PORT), "--no-access-log"]
    server = start([sys.executable, "-m", "edgetl.cli.app", "serve", str(path), *options], PORT)
    try:
        memory = family_mb(server.pid)
        watch, begin = Probe(PORT), time.monotonic()
        statuses, unexplained = fuzz(PORT, sound_requests(name, photo, side), large_requests(name, side), requests)
        took = time.monotonic() - begin
        waits = watch.end()
        shown = {(status or b"closed").decode("latin-1"): count for status, count in statuses.most_common()}
        print(f"{statuses.total()} fuzzed requests in {took:.0f} s: {shown}")
        print(f"  5xx caused by input: {len(unexplained)}; memory {memory:.0f} MB before, {family_mb(server.pid):.0f} MB after")
        for text in unexplained[:5]:
            print(f"    {text[:200]!r}")
        _print_waits(waits)
        sys.stdout.flush()
        watch = Probe(PORT)
        with slow_uploads(PORT, uploads):
            healthy = _healthy(f"http://127.0.0.1:{PORT}", photo, seconds)
        print(f"{uploads} slow uploads for {seconds:g} s: statuses of a healthy client {dict(healthy)}")
        _print_waits(watch.end())
    finally:
        end(server)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.liveness", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="onnx-fp32")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--uploads", type=int, default=70)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.probe:
        probe(given.probe, 3600.0)
        return
    print(describe_host(), flush=True)
    liveness(given.bundle, given.variant, given.requests, given.uploads, given.seconds)


if __name__ == "__main__":
    main()
