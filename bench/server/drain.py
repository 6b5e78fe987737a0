"""Graceful shutdown of the server: number of requests lost on SIGTERM under load, over repeated trials.

``python -m bench.server.drain BUNDLE``. A request is lost if it was sent on an accepted connection and got no complete response.
Connections that the server has announced to close (``Connection: close``) do not count. There are four kinds of clients: one connection; a
new connection for each request; three pipelined requests; one connection with pauses of up to 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from bench.server.throughput import end, start
from edgetl.core.bundle import open_bundle
from edgetl.core.system.host import describe_host

PORT = 8330
_GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


class Load:
    """Clients in a background thread. They start with the construction and stop with ``end`` or when the server accepts no connection.

    Attributes:
        statuses: number of complete responses by status.
        lost: error of each lost request.
    """

    def __init__(self, port: int, photo: bytes, *, of_each: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.lost: list[str] = []
        self._port, self._stop = port, False
        self._post = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(photo) + photo
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(of_each)))
        self._thread.start()

    def end(self) -> None:
        """Stop sending requests, and wait for the pending responses."""
        self._stop = True
        self._thread.join()

    async def _run(self, of_each: int) -> None:
        kinds = [([self._post], 0.0, False), ([self._post], 0.0, True), ([_GET, self._post, _GET], 0.0, False), ([_GET], 0.05, False)]
        await asyncio.gather(*(self._client(*kind) for kind in kinds for _ in range(of_each)))

    async def _client(self, requests: list[bytes], pause_s: float, fresh: bool) -> None:
        while not self._stop:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                # The server accepts no more connections. No request was sent.
                return
            open_ = True
            while open_ and not self._stop:
                await asyncio.sleep(random.uniform(0, pause_s))
                if reader.at_eof():
                    # The server closed the connection between two requests.
                    break
                open_ = await self._exchange(reader, writer, requests) and not fresh
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: list[bytes]) -> bool:
        """Send the requests at once and read their responses. Return True if the connection stays open."""
        try:
            writer.write(b"".join(requests))
            for _ in requests:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                await reader.readexactly(int(lines[b"content-length"]))
                self.statuses[int(head[9:12])] += 1
                if lines.get(b"connection") == b"close":
                    return False
        except (OSError, asyncio.IncompleteReadError) as error:
            self.lost.append(repr(error))
            return False
        return True


def drain(path: Path, variant: str, trials: int, seconds: float) -> None:
    """Print the results of each trial, and of all trials together."""
    bundle = open_bundle(path)
    photo = (bundle.path / bundle.manifest.golden[0].image.path).read_bytes()
    statuses: Counter[int] = Counter()
    lost: list[str] = []
    for trial in range(trials):
        options = ["--variant", variant, "--port", str(PORT), "--no-access-log"]
        server = start([sys.executable, "-m", "edgetl.cli.app", "serve", str(path), *options], PORT)
        try:
            load = Load(PORT, photo, of_each=4)
            time.sleep(seconds)
            server.send_signal(signal.SIGTERM)
            begin = time.monotonic()
            code = server.wait(40)
            took = time.monotonic() - begin
            load.end()
        finally:
            end(server)
        statuses += load.statuses
        lost += load.lost
        print(
            f"trial {trial + 1}: {load.statuses.total()} responses, {len(load.lost)} lost requests, exit code {code} after {took:.1f} s",
            flush=True,
        )
    print(f"{trials} trials: {statuses.total()} responses, by status {dict(statuses)}; {len(lost)} lost requests")
    for text in lost[:10]:
        print(f"  {text}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.server.drain", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="onnx-fp32")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    print(describe_host())
    drain(given.bundle, given.variant, given.trials, given.seconds)


if __name__ == "__main__":
    main()
