"""Server: latency of one connection, and throughput of eight connections, on this host."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from itertools import cycle

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from edgetl.core.bundle import Bundle
from tests.serve.serving import Served, serving

pytestmark = pytest.mark.benchmark(group="server", warmup=True, warmup_iterations=20)
VARIANT, CONNECTIONS, REQUESTS = "onnx-int8", 8, 32


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Served]:
    """``edgetl serve`` with one variant."""
    with serving(bundle.path, options=("--variant", VARIANT, "--no-access-log")) as served:
        yield served


def _request(connection: HTTPConnection, image: bytes) -> None:
    connection.request("POST", "/predict", image)
    response = connection.getresponse()
    assert response.status == 200, response.read()
    response.read()


def test_request(benchmark: BenchmarkFixture, server: Served, camera: list[bytes]) -> None:
    connection, images = HTTPConnection("127.0.0.1", server.port), cycle(camera)
    benchmark(lambda: _request(connection, next(images)))
    connection.close()


def test_requests_of_8_connections(benchmark: BenchmarkFixture, server: Served, camera: list[bytes]) -> None:
    """Time of 256 requests. The clients use the same cores as the server."""
    connections = [HTTPConnection("127.0.0.1", server.port) for _ in range(CONNECTIONS)]

    def send(connection: HTTPConnection) -> None:
        for image, _ in zip(cycle(camera), range(REQUESTS), strict=False):
            _request(connection, image)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        benchmark.pedantic(lambda: list(pool.map(send, connections)), rounds=5, warmup_rounds=1)
    for connection in connections:
        connection.close()
    if benchmark.stats:
        benchmark.extra_info["requests_per_s"] = round(CONNECTIONS * REQUESTS / benchmark.stats.stats.median, 1)
