"""Serving the active release of a store: updates, confirmation, rollback, and stores without a healthy release."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence, Set
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgetl.core.bundle import open_bundle
from edgetl.core.store import active_release
from edgetl.core.store.probation import LATENCY_SAMPLES
from edgetl.core.store.state import Probation, ReleaseRecord, read_state
from edgetl.core.system.execution import Choice, Timing, Tuning
from edgetl.device.store.status import roll_back
from edgetl.errors import BundleError, RequestError
from edgetl.serve import service as service_module
from edgetl.serve.config import ServeConfig
from edgetl.serve.protocol.content import Upload
from edgetl.serve.protocol.models import Model, Models
from edgetl.serve.service import Service
from edgetl.serve.workers.bundles import ServedBundle, find_bundles
from edgetl.serve.workers.messages import Job, Result, pack_config, unpack_config
from tests.device.bundles import SIDE, add_release, image, write_bundle
from tests.runtime.hostile import end, onnx_bytes
from tests.serve.serving import LIMIT_S, Served, serving, until

BLACK = image((0, 0, 0))


def fragile_network() -> bytes:
    """Return an ONNX file that computes a black image and the golden image, and fails on a blue one: an index is out of range."""
    ends = [end("input", ["n", 3, SIDE, SIDE]), end("logits", ["n", 3])]
    nodes = [
        helper.make_node("ReduceMean", ["input", "sides"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "blue"], ["amount"]),
        helper.make_node("Greater", ["amount", "limit"], ["is_blue"]),
        helper.make_node("Cast", ["is_blue"], ["index"], to=7),
        helper.make_node("Gather", ["factor", "index"], ["factors"]),
        helper.make_node("MatMul", ["means", "weights"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "factors"], ["logits"]),
    ]
    values = {
        "sides": np.array([2, 3]),
        "blue": np.array([[0.0], [0.0], [1.0]], np.float32),
        "limit": np.array([1.0], np.float32),
        "factor": np.array([1.0], np.float32),
        "weights": np.float32(1.03) * np.eye(3, dtype=np.float32),
    }
    return onnx_bytes(nodes, values, ends=ends)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Releases 1 and 2, and release 3, which fails on blue images."""
    root = tmp_path_factory.mktemp("bundles")
    found = {number: write_bundle(root / str(number), number) for number in (1, 2)}
    return found | {3: write_bundle(root / "3", 3, model=fragile_network())}


def _predict(served: Served, data: bytes = BLACK) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{served.url}/predict", data=data)) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def _version(served: Served) -> object:
    return _predict(served)[1].get("version")


def test_a_new_release_is_served_confirmed_and_rolled_back_while_the_server_runs(bundles: dict[int, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    add_release(store, bundles[1])
    with serving(store, options=("--watch",)) as served:
        assert _version(served) == "1"
        add_release(store, bundles[2], probation=Probation(healthy_s=0.5))
        until(lambda: read_state(store).probation is None)
        until(lambda: _version(served) == "2")
        assert read_state(store).history[-1].action == "confirm"
        roll_back(store)
        until(lambda: _version(served) == "1")
        assert "reload refused" not in served.log()


def test_a_store_without_a_healthy_release_is_not_ready_until_an_installation(bundles: dict[int, Path], tmp_path: Path) -> None:  # D6
    store = tmp_path / "store"
    record = add_release(store, bundles[1], probation=Probation(tries=2, healthy_s=900.0))
    with serving(store) as served:
        assert _version(served) == "1"
        for crashes in (1, 2):
            until(served.ready)
            served.signal_workers(signal.SIGKILL)
            until(lambda: served.metric("edgetl_workers_replaced_total") >= crashes)  # noqa: B023 - called in the same turn
        until(lambda: "\nnot ready: " in served.log())
        until(lambda: served.workers() == [])
        status, body = _predict(served)
        reason = "is not ready: release 1 was rolled back, and no earlier release is left. Reason: 2 processes crashed"
        assert status == 503 and reason in str(body["error"])
        with pytest.raises(urllib.error.HTTPError) as ready:
            urllib.request.urlopen(f"{served.url}/v2/health/ready")
        with ready.value as response:
            health = json.load(response)
        assert (response.code, health["ready"]) == (503, False) and reason in health["reason"]
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{served.url}/models")
        add_release(store, bundles[2])
        until(served.ready)
        assert _version(served) == "2"
        assert read_state(store).rejected[-1].record == record


def _damage_model(store: Path, record: ReleaseRecord) -> None:
    (store / "releases" / record.id / "onnx-fp32/1/model.onnx").write_bytes(b"x")


def test_a_release_that_cannot_be_loaded_is_rolled_back_at_the_start(bundles: dict[int, Path], tmp_path: Path) -> None:  # D5
    store = tmp_path / "store"
    add_release(store, bundles[1])
    record = add_release(store, bundles[2], probation=Probation())
    _damage_model(store, record)
    (found,) = find_bundles([store], None)
    assert found.path.name.startswith("1-")
    assert read_state(store).rejected[-1].record == record


async def _reached(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):  # ends a test that hangs
        while not condition():
            await asyncio.sleep(0.01)


def _job(color: tuple[int, int, int]) -> Job:
    return Job(0, Upload(image(color), "predict"), time.monotonic() + LIMIT_S)


def test_a_service_waits_for_a_release_and_replaces_one_whose_engine_fails(
    bundles: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # D5, D6
    store, attempts = tmp_path / "store", list[Set[str]]()
    _damage_model(store, add_release(store, bundles[1]))
    monkeypatch.setattr(service_module, "WATCH_S", 0.001)

    def counted(paths: Sequence[Path], variant: str | None, *, skip: Set[str]) -> list[ServedBundle]:
        attempts.append(skip)
        return find_bundles(paths, variant, skip=skip)

    monkeypatch.setattr(service_module, "find_bundles", counted)

    async def scenario() -> None:
        service = Service([store], ServeConfig())
        await service.start()
        assert "none of its releases can be loaded" in service.problem and not service.pool.ready
        with pytest.raises(RequestError, match="is not ready"):
            service.models.all()
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert len(attempts) == 1, "an unchanged store is not loaded again"
        add_release(store, bundles[2])
        await _reached(lambda: not service.problem)
        add_release(store, bundles[3], probation=Probation(healthy_s=900.0))
        service.request_reload()
        await _reached(lambda: service.pool.models.all()[0].version == "3")
        pool, model = service.pool, service.pool.models.all()[0]
        for color, engine_failed in (((0, 0, 0), False), ((0, 0, 255), True)):
            result = await pool.run(_job(color))
            assert result.engine_failed == engine_failed
            service.record(pool, model, result)
        await _reached(lambda: service.pool.models.all()[0].version == "2")
        await service.close()

    asyncio.run(scenario())
    assert read_state(store).rejected[-1].reason == "the inference engine failed on a request."


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (Result(np.zeros((2, 3), np.float32), image_s=0.011), "its median latency is 11.0 ms, and the limit is 10 ms."),
        (Result(np.full((1, 3), np.nan, np.float32), image_s=0.001), "it returned a score that is not a number."),
    ],
    ids=["too slow", "not a number"],
)
def test_results_of_a_release_in_probation_roll_it_back(
    bundles: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: Result, reason: str
) -> None:  # D5
    store, reloads = tmp_path / "store", list[str]()
    add_release(store, bundles[1])
    add_release(store, bundles[2], probation=Probation(max_latency_ms=10.0))
    (found,) = find_bundles([store], None)
    service, model = Service([store], ServeConfig()), Model(open_bundle(found.path).manifest, "onnx-fp32")
    service.pool.models, service._served = Models([model]), [found]
    monkeypatch.setattr(service, "request_reload", lambda: reloads.append("requested"))
    for _ in range(LATENCY_SAMPLES):
        service.record(service.pool, model, result)
    assert reloads == ["requested"]
    assert read_state(store).rejected[-1].reason == reason


def test_a_tuned_release_is_served_with_its_tuned_choice(bundles: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    add_release(store, write_bundle(tmp_path / "5", 5, precisions=("fp32", "fp16")))
    release, chosen = active_release(store), Choice(variant="onnx-fp16", threads=2)
    timing = Timing(**chosen.model_dump(), whole_ms=1.0, n=1, golden_difference=0.0)
    release.tuning.parent.mkdir()
    for module in ("edgetl.core.system.execution", "edgetl.core.system.host", "edgetl.serve.config", "edgetl.serve.service"):
        monkeypatch.setattr(f"{module}.available_cores", lambda: 4)
    found = Tuning(
        name="colors",
        manifest_sha256=release.record.manifest_sha256,
        max_threads=4,
        images=1,
        chosen=chosen,
        timings=(timing,),
        seconds=1.0,
    )
    release.tuning.write_text(found.model_dump_json())
    served = find_bundles([store], None)
    assert served[0].choice == chosen
    for threads, processes, expected in ((None, 1, (2, 2)), (None, 2, (1, 2)), (4, 1, (4, 1)), (1, 1, (1, 2))):
        config = Service([store], ServeConfig(threads=threads, processes=processes))._worker_config(served)
        assert (config.threads, config.choices[0].threads) == expected
        assert unpack_config(json.loads(pack_config(config)[16:])) == config
    assert find_bundles([store], "onnx-fp32")[0].choice == Choice(variant="onnx-fp32", threads=1)


def test_an_unknown_variant_does_not_roll_back(bundles: dict[int, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    record = add_release(store, bundles[1], probation=Probation())
    with pytest.raises(BundleError, match="no variant"):
        find_bundles([store], "onnx-int8")
    assert read_state(store).active == record
