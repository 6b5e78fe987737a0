"""Liveness of the server under malicious requests: longest time that its event loop and normal clients are blocked.

``python -m bench.server.liveness BUNDLE``. The benchmark sends mutated and large requests, and then 70 uploads at 2 bytes per second
together with a normal client. A separate process requests ``/v2/health/live`` every 5 ms on one connection. Its longest wait is an upper
bound of the time that the event loop was blocked. It includes delays of the host's scheduler, so run the benchmark on an idle host.
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

from bench.memory import family_mb
from bench.server.http_fuzz import fuzz, large_requests, slow_uploads, valid_requests
from bench.server.throughput import end, start
from edgetl.core.bundle import open_bundle
from edgetl.core.system.host import describe_host

PORT = 8320
_EVERY_S = 0.005
_REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def probe(port: int, seconds: float) -> None:
    """Send requests for ``seconds``, and print the times of the responses as JSON, ms."""
    waits = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        stop = time.monotonic() + seconds
        while (begin := time.monotonic()) < stop and not _ended():
            connection.sendall(_REQUEST)
            found = b""
            while not found.endswith(b'{"live":true}'):
                part = connection.recv(4096)
                assert part, "the server closed the probe's connection"
                found += part
            waits.append((time.monotonic() - begin) * 1000)
            time.sleep(_EVERY_S)
    print(json.dumps(waits))


def _ended() -> bool:
    """Return True if the parent has closed the standard input."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


class Probe:
    """Process of the liveness probe. It runs from the construction until ``end``."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "bench.server.liveness", ".", "--probe", str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        time.sleep(1.0)

    def end(self) -> list[float]:
        """Stop the probe and return the times of the responses, ms, sorted."""
        output, _ = self._process.communicate()
        return sorted(json.loads(output))


def _print_waits(waits: list[float]) -> None:
    print(
        f"  liveness probe: {len(waits)} responses, p50 {waits[len(waits) // 2]:.1f} ms, p99 {waits[int(len(waits) * 0.99)]:.1f} ms, "
        f"longest {waits[-1]:.1f} ms"
    )


def _healthy(url: str, photo: bytes, seconds: float) -> Counter[int]:
    """Send one request after another for ``seconds``, and return the number of responses by status. 0 is no response."""
    statuses: Counter[int] = Counter()
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", photo), timeout=10) as response:
                statuses[response.status] += 1
        except urllib.error.HTTPError as error:
            statuses[error.code] += 1
            error.close()
        except OSError:
            statuses[0] += 1
    return statuses


def liveness(path: Path, variant: str, requests: int, uploads: int, seconds: float) -> None:
    """Print the statuses, the memory and the waits of the probe."""
    bundle = open_bundle(path)
    name, side = bundle.manifest.name, bundle.manifest.preprocess.input_size[0]
    photo = (bundle.path / bundle.manifest.golden[0].image.path).read_bytes()
    options = ["--variant", variant, "--port", str(PORT), "--no-access-log"]
    server = start([sys.executable, "-m", "edgetl.cli.app", "serve", str(path), *options], PORT)
    try:
        memory = family_mb(server.pid)
        watch, begin = Probe(PORT), time.monotonic()
        statuses, unexpected = fuzz(PORT, valid_requests(name, photo, side), large_requests(name, side), requests)
        took = time.monotonic() - begin
        waits = watch.end()
        shown = {(status or b"closed").decode("latin-1"): count for status, count in statuses.most_common()}
        print(f"{statuses.total()} fuzzed requests in {took:.0f} s, by status: {shown}")
        print(f"  unexpected status 5xx: {len(unexpected)}; memory {memory:.0f} MB before, {family_mb(server.pid):.0f} MB after")
        for text in unexpected[:5]:
            print(f"    {text[:200]!r}")
        _print_waits(waits)
        sys.stdout.flush()
        watch = Probe(PORT)
        with slow_uploads(PORT, uploads):
            healthy = _healthy(f"http://127.0.0.1:{PORT}", photo, seconds)
        print(f"{uploads} slow uploads for {seconds:g} s: statuses of a normal client {dict(healthy)}")
        _print_waits(watch.end())
    finally:
        end(server)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.server.liveness", description=__doc__)
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
