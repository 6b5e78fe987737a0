"""HTTP servers: latency with one connection, throughput with eight, start-up time, and memory of the server's processes.

All servers run at the same time, and receive requests in turn. The client is part of this process, with one thread per connection and
persistent connections. It takes less than 0.2 ms per request, on the same cores.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.memory import family, family_mb
from bench.peers.environments import stage, variables
from bench.peers.latency import other_programs
from bench.peers.peers import SERVERS, Server
from bench.peers.results import Results
from edgetl.core.system.host import available_cores, describe_host

ROUNDS, REQUESTS, CONNECTIONS = 6, 30, 8
FIRST_PORT = 8400
START_SECONDS = 60.0
Request = tuple[str, bytes, dict[str, str]]


def request_of(form: str, image: bytes) -> Request:
    """Return path, body and headers of a request: ``body`` (the image alone), ``form`` or ``triton`` (KServe v2, binary)."""
    if form == "body":
        return "/predict", image, {"Content-Type": "image/jpeg"}
    if form == "form":
        boundary = "edgetl-bench"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        body = head.encode() + image + f"\r\n--{boundary}--\r\n".encode()
        return "/predict", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    tensor = {"name": "image", "shape": [len(image)], "datatype": "UINT8", "parameters": {"binary_data_size": len(image)}}
    head_json = json.dumps({"inputs": [tensor], "outputs": [{"name": "label"}]}).encode()
    return "/v2/models/network/infer", head_json + image, {"Inference-Header-Content-Length": str(len(head_json))}


@dataclass
class Running:
    """Server that responded to a first request."""

    process: subprocess.Popen[bytes]
    port: int
    requests: Sequence[Request]
    start_s: float = 0.0

    def send(self, number: int, connection: http.client.HTTPConnection) -> float:
        """Send an image. Return the milliseconds until the complete response.

        Raises:
            OSError: the server closed the connection or responded with an error.
        """
        path, body, headers = self.requests[number % len(self.requests)]
        start = time.perf_counter_ns()
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise OSError(f"status {response.status}: {text[:200]!r}")
        return (time.perf_counter_ns() - start) / 1e6

    def connect(self) -> http.client.HTTPConnection:
        """Return a new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def latencies(self, count: int) -> list[float]:
        """Send requests over one connection, one after the other. Return the latencies, ms."""
        connection = self.connect()
        try:
            return [round(self.send(number, connection), 4) for number in range(count)]
        finally:
            connection.close()

    def rate(self, count: int) -> float:
        """Send requests over all connections at the same time. Return the responses per second."""
        start = time.perf_counter()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(self.latencies, [count] * CONNECTIONS))
        return CONNECTIONS * count / (time.perf_counter() - start)

    def stop(self) -> None:
        """Stop the server and its worker processes."""
        members = family(self.process.pid)
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        self.process.wait()


def start(work: Path, server: Server, port: int, requests: Sequence[Request]) -> Running:
    """Start a server and return it after its first response.

    Raises:
        OSError: the server ended or did not respond in time.
    """
    values = {"models": str(work / "models"), "cores": str(available_cores()), "port": str(port)}
    command = [str(work / "environments" / server.environment / "bin/python"), *(text.format(**values) for text in server.arguments)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=variables(1), cwd=work / "code")
    running = Running(process, port, requests)
    while time.perf_counter() - begin < START_SECONDS and process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            running.latencies(1)
            running.start_s = time.perf_counter() - begin
            return running
        time.sleep(0.02)
    running.stop()
    raise OSError(f"the server ended with exit code {process.returncode} before its first response")


def measure_servers(work: Path, results: Results, servers: Sequence[Server] = SERVERS) -> None:
    """Measure all servers in turn, and write one row for each."""
    stage(work)
    images = [Path(file).read_bytes() for file, _ in json.loads((work / "models/test.json").read_text())[:60]]
    problems = other_programs()
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        running: dict[str, Running] = {}
        for offset, server in enumerate(servers):
            try:
                found = start(work, server, FIRST_PORT + offset, [request_of(server.form, image) for image in images])
            except OSError as error:
                results.add("server", server.title, reason=str(error))
                print(f"{server.title}: cannot be measured: {error}", flush=True)
                continue
            stack.callback(found.stop)
            running[server.title] = found
            rows[server.title] = {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "host": describe_host(), "start_s": found.start_s}
        for number in range(ROUNDS + 1):
            for title in running if number % 2 == 0 else reversed(running):
                one, many = running[title].latencies(REQUESTS), running[title].rate(REQUESTS)
                if number:  # the first round warms up
                    rows[title].setdefault("latency_ms", []).append(one)
                    rows[title].setdefault("requests_per_s", []).append(round(many, 2))
        for title, found in running.items():
            rows[title]["rss_mb"] = round(family_mb(found.process.pid), 1)
    problems += other_programs()
    for title, row in rows.items():
        results.add("server", title, **row, problems=problems)
        print(f"{title}: {np.median(row['latency_ms']):.2f} ms, {np.median(row['requests_per_s']):.1f} requests/s", flush=True)
