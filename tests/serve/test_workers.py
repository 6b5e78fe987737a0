"""Worker processes: crashes, hangs, full queues, deadlines, batches, and changed bundles."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from edgetl.core.bundle import Bundle
from edgetl.errors import ConfigError
from edgetl.serve.protocol.models import Model, Models
from tests.serve.clients import Clients
from tests.serve.serving import Served, serving, until, with_release


@pytest.fixture(scope="module")
def hang_server(bundle: Bundle) -> Iterator[Served]:
    """Server that replaces a worker after 5 s without a result."""
    with serving(bundle.path, options=("--hang-s", "5", "--threads", "2")) as served:
        yield served
        assert "Traceback" not in served.log()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGSTOP], ids=["crash", "out of memory", "hang"])
def test_crashed_or_hung_worker_is_replaced(hang_server: Served, photo: bytes, number: signal.Signals) -> None:
    """Requests in the worker get status 500. Waiting requests are computed by the replacement."""
    served = hang_server
    old, before = served.workers(), served.metric("edgetl_workers_replaced_total")
    clients = Clients(served, photo, 8)
    until(lambda: clients.statuses[200] > 20)
    served.signal_workers(number)
    until(lambda: served.metric("edgetl_workers_replaced_total") > before)
    until(served.ready)
    then = clients.statuses[200]
    until(lambda: clients.statuses[200] > then + 20)
    clients.end()
    replaced = served.metric("edgetl_workers_replaced_total") - before
    assert not clients.errors and set(clients.statuses) <= {200, 500} and clients.statuses[500] <= 8 * replaced
    # The clients send requests to a hung worker until it is full.
    assert clients.statuses[500] or number != signal.SIGSTOP
    assert served.workers() and not set(served.workers()) & set(old)
    assert "starting a replacement" in served.log()


def test_other_workers_continue_after_a_crash(bundle: Bundle, photo: bytes) -> None:
    with serving(bundle.path, options=("--processes", "2", "--threads", "1")) as served:
        assert len(served.workers()) == 2
        os.kill(served.workers()[0], signal.SIGKILL)
        for _ in range(10):
            assert served.ready()
            assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200
        until(lambda: len(served.workers()) == 2)


@pytest.fixture(scope="module")
def copies(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Release 1 and release 2 of the bundle, in folders that tests may change."""
    work = tmp_path_factory.mktemp("copies")
    return [with_release(bundle, work / str(number), number) for number in (1, 2)]


@pytest.fixture(scope="module")
def copies_server(copies: list[Path]) -> Iterator[Served]:
    """Server of both copies."""
    with serving(*copies) as served:
        yield served
        assert "Traceback" not in served.log()


def test_server_recovers_after_workers_cannot_start(copies_server: Served, copies: list[Path], photo: bytes) -> None:
    served, away = copies_server, copies[0].with_name("away")
    copies[0].rename(away)
    served.signal_workers(signal.SIGKILL)
    until(lambda: "a worker process failed to start" in served.log())
    assert not served.ready()
    response = httpx.post(f"{served.url}/predict", content=photo, headers={"Request-Timeout-Ms": "200"}, timeout=None)
    assert response.status_code == 504 and str(away.parent) not in response.text
    away.rename(copies[0])
    until(served.ready)
    assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [({"release": 1}, "a served bundle was changed on disk"), ({"name": "other"}, "is missing from the new bundles")],
    ids=["same release twice", "other name"],
)
def test_server_does_not_serve_a_bundle_changed_in_place(
    copies_server: Served, copies: list[Path], photo: bytes, change: dict[str, object], message: str
) -> None:
    """The server is ready again after the original manifests are restored."""
    served, manifests = copies_server, [copy / "manifest.json" for copy in copies]
    originals = [manifest.read_text() for manifest in manifests]
    for manifest, original in zip(manifests, originals, strict=True):
        manifest.write_text(json.dumps({**json.loads(original), **change}) + "\n")
    before = served.log().count(message)
    served.signal_workers(signal.SIGKILL)
    until(lambda: served.log().count(message) > before)
    assert not served.ready()
    for manifest, original in zip(manifests, originals, strict=True):
        manifest.write_text(original)
    until(served.ready)
    assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200


def test_two_bundles_with_one_name_and_release_are_rejected(bundle: Bundle) -> None:
    model = Model(bundle.manifest, "onnx-fp32")
    with pytest.raises(ConfigError, match="two bundles have the name 'digits' and release 1"):
        Models([model, model])


@pytest.fixture(scope="module")
def queue_server(bundle: Bundle) -> Iterator[Served]:
    """Server that admits 32 requests and computes up to 8 images in a batch. Its worker takes 9 requests."""
    options = ("--threads", "1", "--batch", "8", "--queue", "31", "--hang-s", "100000", "--deadline-s", "100000")
    with serving(bundle.path, options=options) as served:
        yield served
        assert "Traceback" not in served.log()


def test_requests_beyond_the_queue_get_503(queue_server: Served, photo: bytes) -> None:
    served, url = queue_server, f"{queue_server.url}/predict"
    served.signal_workers(signal.SIGSTOP)
    with ThreadPoolExecutor(100) as pool, httpx.Client(limits=httpx.Limits(max_connections=None), timeout=None) as web:
        sent = [pool.submit(web.post, url, content=photo) for _ in range(100)]
        until(lambda: sum(response.done() for response in sent) == 68)
        assert served.metric("edgetl_inflight") == 32 and served.ready()
        served.signal_workers(signal.SIGCONT)
        responses = [response.result() for response in sent]
    assert Counter(response.status_code for response in responses) == {503: 68, 200: 32}
    rejected = [response for response in responses if response.status_code == 503]
    assert all(int(response.headers["Retry-After"]) >= 1 and "error" in response.json() for response in rejected)
    assert served.metric('edgetl_rejected_total{reason="queue full"') == 68


def test_requests_after_their_deadline_are_not_computed(queue_server: Served, photo: bytes) -> None:
    """This holds for requests in the queue of the server and in the worker."""
    served = queue_server
    computed = served.metric("edgetl_inference_duration_seconds_count")
    late = served.metric('edgetl_rejected_total{reason="deadline"')
    served.signal_workers(signal.SIGSTOP)
    with ThreadPoolExecutor(20) as pool, httpx.Client(limits=httpx.Limits(max_connections=None), timeout=None) as web:
        headers = {"Request-Timeout-Ms": "300"}
        sent = [pool.submit(web.post, f"{served.url}/predict", content=photo, headers=headers) for _ in range(20)]
        # The others are in the worker, which is stopped.
        until(lambda: sum(response.done() for response in sent) >= 11)
        time.sleep(0.4)
        served.signal_workers(signal.SIGCONT)
        assert {response.result().status_code for response in sent} == {504}
    assert served.metric("edgetl_inference_duration_seconds_count") == computed
    assert served.metric('edgetl_rejected_total{reason="deadline"') == late + 20


def test_batched_requests_get_their_own_predictions(queue_server: Served, digits: Path) -> None:
    """Invalid images in a batch do not affect the others."""
    served, url = queue_server, f"{queue_server.url}/predict"
    files = [path.read_bytes() for folder in sorted(digits.iterdir()) for path in sorted(folder.iterdir())[:2]]
    with httpx.Client(limits=httpx.Limits(max_connections=None), timeout=None) as web:
        alone = [web.post(url, content=data).json()["scores"] for data in files]
        served.signal_workers(signal.SIGSTOP)
        with ThreadPoolExecutor(len(files) + 2) as pool:
            sent = [pool.submit(web.post, url, content=data) for data in [*files, b"not an image", b"\xff\xd8\xff"]]
            until(lambda: served.metric("edgetl_inflight") == len(sent))
            served.signal_workers(signal.SIGCONT)
            batched = [response.result() for response in sent]
    assert [response.status_code for response in batched] == [200] * len(files) + [400] * 2
    for expected, response in zip(alone, batched, strict=False):
        assert list(response.json()["scores"].values()) == pytest.approx(list(expected.values()), abs=1e-5)
