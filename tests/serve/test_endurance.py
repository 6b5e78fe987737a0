"""Many requests: mutated requests, overload, and long operation.

``EDGETL_SOAK_S`` is the duration of the long test, seconds (default: 600).
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from bench.memory import family, family_mb
from bench.server.http_fuzz import fuzz, large_requests, send_request, valid_requests
from bench.server.overload import open_loop
from edgetl.core.bundle import Bundle
from tests.serve.clients import Clients
from tests.serve.serving import LIMIT_S, Served, serving, until

SOAK_S = float(os.environ.get("EDGETL_SOAK_S", "600"))


@pytest.mark.parametrize("count", [600, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_requests_cause_no_crash_and_no_5xx(served: Served, bundle: Bundle, photo: bytes, count: int) -> None:
    """The long version includes large requests. ``bench.server.liveness`` measures whether they block the event loop."""
    name, side = bundle.manifest.name, bundle.manifest.preprocess.input_size[0]
    valid, before = valid_requests(name, photo, side), served.metric("edgetl_workers_replaced_total")
    assert {send_request(served.port, data, LIMIT_S) for data in valid} == {b"200"}
    statuses, unexplained = fuzz(served.port, valid, large_requests(name, side) if count > 1000 else [], count)
    print(dict(statuses))
    assert statuses.total() == count and not unexplained
    assert {send_request(served.port, data, LIMIT_S) for data in valid} == {b"200"}
    assert served.metric("edgetl_workers_replaced_total") == before and "Traceback" not in served.log() and served.ready()


def test_requests_that_are_expensive_to_parse_leave_the_server_ready(served: Served, bundle: Bundle, photo: bytes) -> None:
    name, side, before = bundle.manifest.name, bundle.manifest.preprocess.input_size[0], served.metric("edgetl_workers_replaced_total")
    for data in large_requests(name, side):
        assert send_request(served.port, data, LIMIT_S) in (b"200", b"400"), data[:200]
    assert send_request(served.port, valid_requests(name, photo, side)[0], LIMIT_S) == b"200"
    assert served.metric("edgetl_workers_replaced_total") == before and "Traceback" not in served.log()


@pytest.mark.parametrize("seconds", [1.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_overload_is_rejected_and_leaves_no_trace(bundle: Bundle, photo: bytes, seconds: float) -> None:
    """``bench/server/overload.py`` measures the throughput under overload."""
    with serving(bundle.path, options=("--threads", "1", "--queue", "20", "--deadline-s", "100000", "--hang-s", "100000")) as served:
        asyncio.run(open_loop(served.port, photo, 200.0, 0.5))
        memory = family_mb(served.process_id)
        # With a stopped worker the queue fills on a host of any speed.
        served.signal_workers(signal.SIGSTOP)
        timer = threading.Timer(0.5, served.signal_workers, [signal.SIGCONT])
        timer.start()
        seen = asyncio.run(open_loop(served.port, photo, 3000.0, seconds))
        timer.join()
        assert set(seen.times) == {200, 503} and not seen.without_retry_after
        assert family_mb(served.process_id) - memory < 50
        until(lambda: served.metric("edgetl_inflight") == 0)
        for _ in range(20):
            assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200
        assert "Traceback" not in served.log()


def _descriptors_and_threads(served: Served) -> tuple[int, int]:
    """Return the numbers of file descriptors and threads of the server and its workers."""
    folders = [Path(f"/proc/{pid}") for pid in family(served.process_id)]
    descriptors, threads = (sum(len(list((folder / name).iterdir())) for folder in folders) for name in ("fd", "task"))
    return descriptors, threads


@pytest.mark.parametrize("requests", [300, pytest.param(None, marks=pytest.mark.slow)], ids=["short", "long"])
def test_server_does_not_grow_during_long_operation(served: Served, photo: bytes, requests: int | None) -> None:
    """Two clients keep the server busy for 300 requests, or for ``EDGETL_SOAK_S``."""
    clients = Clients(served, photo, 2)
    until(lambda: clients.statuses.total() >= 100)
    memory, before = family_mb(served.process_id), _descriptors_and_threads(served)
    if requests is None:
        time.sleep(SOAK_S)
    else:
        until(lambda: clients.statuses.total() >= 100 + requests)
    grown, after = family_mb(served.process_id) - memory, _descriptors_and_threads(served)
    clients.end()
    print(f"{clients.statuses.total()} responses, {grown:+.1f} MB, descriptors and threads {before} -> {after}")
    assert set(clients.statuses) == {200} and not clients.errors
    assert grown < 5 and after[0] <= before[0] + 4 and after[1] <= before[1] + 2
