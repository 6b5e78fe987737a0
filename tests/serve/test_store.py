"""Serving the active release of a store: updates, confirmation and rollback."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path

import pytest

from edgetl.core.store.state import Probation, ReleaseRecord, read_state
from edgetl.device.store.status import roll_back
from edgetl.errors import BundleError, StoreError
from edgetl.serve.workers.bundles import find_bundles
from tests.device.bundles import add_release, image, write_bundle
from tests.serve.serving import Served, serving, until


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {number: write_bundle(root / str(number), number) for number in (1, 2)}


def _version(served: Served) -> str:
    with urllib.request.urlopen(urllib.request.Request(f"{served.url}/predict", data=image())) as response:
        return str(json.load(response)["version"])


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


def test_a_release_whose_workers_crash_is_rolled_back(bundles: dict[int, Path], tmp_path: Path) -> None:  # D5
    store = tmp_path / "store"
    add_release(store, bundles[1])
    add_release(store, bundles[2], probation=Probation(tries=2, healthy_s=900.0))
    with serving(store) as served:
        assert _version(served) == "2"
        for crashes in (1, 2):
            served.signal_workers(signal.SIGKILL)
            until(lambda: served.metric("edgetl_workers_replaced_total") >= crashes)  # noqa: B023 - called in the same turn
            until(served.ready)
        until(lambda: _version(served) == "1")
    rejected = read_state(store).rejected[-1]
    assert (rejected.record.release, rejected.reason.split(" ")[:3]) == (2, ["2", "processes", "crashed"])


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


def test_a_store_without_a_healthy_release_is_not_served(bundles: dict[int, Path], tmp_path: Path) -> None:  # D6
    store = tmp_path / "store"
    _damage_model(store, add_release(store, bundles[1], probation=Probation()))
    for _ in range(2):
        with pytest.raises(StoreError, match="is not ready: release 1 was rolled back, and no earlier release is left"):
            find_bundles([store], None)


def test_an_unknown_variant_does_not_roll_back(bundles: dict[int, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    record = add_release(store, bundles[1], probation=Probation())
    with pytest.raises(BundleError, match="no variant"):
        find_bundles([store], "onnx-int8")
    assert read_state(store).active == record
