"""Worker processes that die, hang or stand still; queues that are full; deadlines that pass."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from edgetl.core.bundle import Bundle
from tests.serve.serving import Served, serving, until
from tests.serve.test_drain import Clients


def _send(served: Served, number: signal.Signals) -> None:
    for worker in served.workers():
        os.kill(worker, number)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGSTOP], ids=["crash", "out of memory", "hang"])
def test_a_worker_that_dies_or_hangs_is_replaced(bundle: Bundle, photo: bytes, number: signal.Signals) -> None:
    """Its requests get a clear error; waiting requests are answered."""
    with serving(bundle.path, options=("--hang-s", "1", "--threads", "2")) as served:
        old = served.workers()
        clients = Clients(served, photo, 8)
        until(lambda: clients.codes[200] > 20)
        _send(served, number)
        until(lambda: served.metric("edgetl_workers_replaced_total") == 1)
        until(served.ready)
        then = clients.codes[200]
        until(lambda: clients.codes[200] > then + 20)
        clients.end()
        assert not clients.lost and set(clients.codes) <= {200, 500} and 1 <= clients.codes[500] <= 8
        assert served.workers() and not set(served.workers()) & set(old)
        assert "starting a replacement" in served.said() and "Traceback" not in served.said()


def test_of_several_workers_the_others_go_on(bundle: Bundle, photo: bytes) -> None:
    with serving(bundle.path, options=("--processes", "2", "--threads", "1")) as served:
        assert len(served.workers()) == 2
        os.kill(served.workers()[0], signal.SIGKILL)
        for _ in range(10):
            assert served.ready()
            assert httpx.post(f"{served.url}/predict", content=photo).status_code == 200
        until(lambda: len(served.workers()) == 2)


def test_a_server_whose_workers_cannot_start_says_so_and_recovers(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    """A crash loop is not ready, answers clearly, and ends when its cause does."""
    shutil.copytree(bundle.path, tmp_path / "served")
    with serving(tmp_path / "served") as served:
        (tmp_path / "served").rename(tmp_path / "away")
        _send(served, signal.SIGKILL)
        until(lambda: "a worker process failed to start" in served.said())
        assert not served.ready()
        answer = httpx.post(f"{served.url}/predict", content=photo, headers={"Request-Timeout-Ms": "200"})
        assert answer.status_code == 504
        (tmp_path / "away").rename(tmp_path / "served")
        until(served.ready)
        assert httpx.post(f"{served.url}/predict", content=photo).status_code == 200
        assert str(tmp_path) not in answer.text


def test_as_many_wait_as_may_and_the_rest_is_refused_at_once(bundle: Bundle, photo: bytes) -> None:
    """A burst; while nothing is computed the count is exact."""
    with serving(bundle.path, options=("--threads", "2", "--queue", "30")) as served:
        _send(served, signal.SIGSTOP)
        with ThreadPoolExecutor(100) as pool, httpx.Client(limits=httpx.Limits(max_connections=None), timeout=60) as web:
            answers = [pool.submit(web.post, f"{served.url}/predict", content=photo) for _ in range(100)]
            until(lambda: sum(answer.done() for answer in answers) == 68)
            assert served.metric("edgetl_inflight") == 32 and served.ready()
            _send(served, signal.SIGCONT)
            codes = Counter(answer.result().status_code for answer in answers)
        assert codes == {503: 68, 200: 32}
        refused = [answer.result() for answer in answers if answer.result().status_code == 503]
        assert all(int(answer.headers["Retry-After"]) >= 1 and "error" in answer.json() for answer in refused)
        assert served.metric('edgetl_rejected_total{reason="queue full"') == 68


def test_a_deadline_that_passes_is_told_and_nothing_is_computed(bundle: Bundle, photo: bytes) -> None:
    """The same for a request that waits in the server and in its worker."""
    with serving(bundle.path, options=("--threads", "1", "--batch", "1")) as served:
        _send(served, signal.SIGSTOP)
        with ThreadPoolExecutor(6) as pool, httpx.Client(timeout=60) as web:
            headers = {"Request-Timeout-Ms": "300"}
            answers = [pool.submit(web.post, f"{served.url}/predict", content=photo, headers=headers) for _ in range(6)]
            until(lambda: sum(answer.done() for answer in answers) >= 4)
            time.sleep(0.4)
            _send(served, signal.SIGCONT)
            assert {answer.result().status_code for answer in answers} == {504}
        assert served.metric("edgetl_inference_duration_seconds_count") == 0
        assert served.metric('edgetl_rejected_total{reason="deadline"') == 6


def test_requests_that_are_computed_together_get_their_own_answers(bundle: Bundle, digits: Path) -> None:
    """With batches forced on; a broken image among them disturbs nobody."""
    files = [path.read_bytes() for folder in sorted(digits.iterdir()) for path in sorted(folder.iterdir())[:6]]
    with serving(bundle.path, options=("--threads", "1", "--batch", "8")) as served, httpx.Client(timeout=60) as web:
        alone = [web.post(f"{served.url}/predict", content=data).json()["scores"] for data in files]
        _send(served, signal.SIGSTOP)
        with ThreadPoolExecutor(len(files) + 2) as pool:
            sent = [pool.submit(web.post, f"{served.url}/predict", content=data) for data in [*files, b"no image", b"\xff\xd8\xff"]]
            until(lambda: served.metric("edgetl_inflight") == len(sent))
            _send(served, signal.SIGCONT)
            found = [answer.result() for answer in sent]
        assert [answer.status_code for answer in found] == [200] * len(files) + [400] * 2
        for one, other in zip(alone, found, strict=False):
            assert list(other.json()["scores"].values()) == pytest.approx(list(one.values()), abs=1e-5)


def test_a_bundle_changed_in_place_to_another_model_is_not_served_and_the_old_one_may_come_back(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "served")
    manifest = tmp_path / "served/manifest.json"
    with serving(tmp_path / "served") as served:
        old = manifest.read_text()
        manifest.write_text(json.dumps({**json.loads(old), "name": "other"}) + "\n")
        _send(served, signal.SIGKILL)
        until(lambda: "is missing from the new bundles" in served.said())
        assert not served.ready()
        manifest.write_text(old)
        until(served.ready, seconds=60)
