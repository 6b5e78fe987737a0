"""Overload of the server: responses of `edgetl serve` at ten times its capacity.

``python -m bench.server.overload BUNDLE``. The load is an open loop: requests are sent at the times of a Poisson process, on an idle or a
new connection. Each latency starts at the planned time, so a stalled server does not improve its figures (coordinated omission). Server and
load run on separate cores (taskset). Otherwise the load would reduce the measured capacity.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.memory import family_mb
from bench.server.throughput import end, photo, press, scripts, start
from edgetl.core.system.host import describe_host, versions

PORT = 8320


@dataclass
class Seen:
    """Results of the requests: latencies by status, seconds. Status 0 is no response."""

    times: dict[int, list[float]] = field(default_factory=dict)
    without_retry_after: int = 0

    def add(self, status: int, seconds: float) -> None:
        self.times.setdefault(status, []).append(seconds)

    def percentile(self, status: int, which: float) -> float:
        """Return a percentile of the latencies with this status, ms."""
        return float(np.percentile(self.times.get(status) or [0.0], which)) * 1000


class Client(asyncio.Protocol):
    """Connection that sends one request at a time."""

    def __init__(self, idle: list[Client], seen: Seen) -> None:
        self._idle, self._seen = idle, seen
        self.planned = 0.0
        self.busy = False
        self._found = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(1 << 20)
        self.transport = transport

    def send(self, request: bytes, planned: float) -> None:
        self.planned, self.busy, self._found = planned, True, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._found += data
        head, gap, body = self._found.partition(b"\r\n\r\n")
        if not gap:
            return
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        status = int(head[9:12])
        self._seen.add(status, time.monotonic() - self.planned)
        if status == 503 and b"retry-after: 1" not in head.lower():
            self._seen.without_retry_after += 1
        self.busy = False
        self._idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self.busy:
            self._seen.add(0, time.monotonic() - self.planned)
        elif self in self._idle:
            self._idle.remove(self)


async def open_loop(port: int, image: bytes, rate: float, seconds: float) -> Seen:
    """Send ``rate`` requests per second for ``seconds``, and wait for all responses."""
    loop, seen, idle, clients = asyncio.get_running_loop(), Seen(), list[Client](), list[Client]()
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(image) + image
    chance, begin = random.Random(0), time.monotonic()
    planned = begin
    while (planned := planned + chance.expovariate(rate)) < begin + seconds:
        if (early := planned - time.monotonic()) > 0:
            await asyncio.sleep(early)
        if not idle:
            _, client = await loop.create_connection(lambda: Client(idle, seen), "127.0.0.1", port)
            clients.append(client)
            idle.append(client)
        idle.pop().send(request, planned)
    until = time.monotonic() + 30
    while any(client.busy for client in clients) and time.monotonic() < until:
        await asyncio.sleep(0.05)
    for client in clients:
        client.transport.abort()
    await asyncio.sleep(0.1)
    return seen


def overload(bundle: Path, variant: str, times: float, seconds: float, options: list[str]) -> None:
    """Print the capacity before and after the overload, and the latencies during it."""
    image, cores = photo(), sorted(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(cores[0]), sys.executable, "-m", "edgetl.cli.app", "serve", str(bundle), "--variant", variant]
    os.sched_setaffinity(0, {cores[-1]})
    server = start([*command, "--port", str(PORT), *options], PORT)
    try:
        with tempfile.TemporaryDirectory() as work:
            script = scripts(Path(work), image)[False]
            press(f"http://127.0.0.1:{PORT}", script, 8, 3.0)
            before = press(f"http://127.0.0.1:{PORT}", script, 8, 10.0)
            memory = family_mb(server.pid)
            seen = asyncio.run(open_loop(PORT, image, before.rate * times, seconds))
            grown = family_mb(server.pid) - memory
            time.sleep(2.0)
            after = press(f"http://127.0.0.1:{PORT}", script, 8, 10.0)
    finally:
        end(server)
    good = len(seen.times.get(200, [])) / seconds
    for name, found in (("capacity, 8 connections", before), ("capacity 2 s after the overload", after)):
        print(f"{name}: {found.rate:.1f} requests/s, p99 {found.p99_ms:.1f} ms")
    print(f"overload: {sum(map(len, seen.times.values())) / seconds:.0f} requests/s for {seconds:g} s, by status:")
    for status, taken in sorted(seen.times.items()):
        p50, p99, worst = (seen.percentile(status, which) for which in (50, 99, 100))
        print(f"  {status or 'no response'}: {len(taken)}, p50 {p50:.1f}, p99 {p99:.1f}, worst {worst:.1f} ms")
    capacity = (before.rate + after.rate) / 2
    print(f"goodput {good:.1f}/s = {good / capacity:.3f} of the capacity (mean of before and after); memory {grown:+.1f} MB")
    print(f"503 without Retry-After: {seen.without_retry_after}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.server.overload", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="openvino-int8")
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    given, options = parser.parse_known_args()
    print(describe_host())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    overload(given.bundle, given.variant, given.times, given.seconds, options)


if __name__ == "__main__":
    main()
