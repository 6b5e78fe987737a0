"""Very many requests: invented ones, and the same one for long. ``EDGETL_SOAK_S`` says for how many seconds (600 by default)."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from bench.http_fuzz import fuzz, large_requests, send_request, valid_requests
from bench.memory import family, family_mb
from bench.overload import open_loop
from edgetl.core.bundle import Bundle
from tests.serve.serving import Served, serving
from tests.serve.test_drain import Clients

SOAK_S = float(os.environ.get("EDGETL_SOAK_S", "600"))


@pytest.mark.parametrize("count", [600, pytest.param(20_000, marks=pytest.mark.slow)])
def test_invented_requests_crash_nothing_and_cause_no_5xx(bundle: Bundle, photo: bytes, count: int) -> None:
    """Large requests are among them; ``bench.liveness`` measures whether any blocks the event loop."""
    name, side = bundle.manifest.name, bundle.manifest.preprocess.input_size[0]
    valid = valid_requests(name, photo, side)
    with serving(bundle.path) as served:
        assert {send_request(served.port, data, 10.0) for data in valid} == {b"200"}
        codes, unexplained = fuzz(served.port, valid, large_requests(name, side) if count > 1000 else [], count)
        print(dict(codes))
        assert codes.total() == count and not unexplained
        assert codes[b"200"] and codes[b"400"] and codes[b"404"]
        assert {send_request(served.port, data, 10.0) for data in valid} == {b"200"}
        assert served.metric("edgetl_workers_replaced_total") == 0 and "Traceback" not in served.said() and served.ready()


def test_requests_that_cost_a_parser_much_are_answered_and_leave_the_server_ready(bundle: Bundle, photo: bytes) -> None:
    name, side = bundle.manifest.name, bundle.manifest.preprocess.input_size[0]
    with serving(bundle.path) as served:
        for data in large_requests(name, side):
            assert send_request(served.port, data, 20.0) in (b"200", b"400"), data[:200]
        assert send_request(served.port, valid_requests(name, photo, side)[0], 10.0) == b"200"
        assert served.metric("edgetl_workers_replaced_total") == 0 and "Traceback" not in served.said()


@pytest.mark.parametrize("seconds", [4.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_far_more_than_it_can_do_is_turned_away_and_leaves_no_trace(bundle: Bundle, photo: bytes, seconds: float) -> None:
    """An open loop; the figures are those of ``bench/overload.py``."""
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
    """At about 70 % of the capacity: one of two threads busy all the time."""
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
