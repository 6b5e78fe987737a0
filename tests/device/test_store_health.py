"""Health of a new release: confirmation, automatic rollback, and stores that cannot be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgetl
from edgetl.core.store import active_release, starts
from edgetl.core.store.probation import LATENCY_SAMPLES
from edgetl.core.store.state import Probation, read_state
from edgetl.errors import BundleError, EngineError, StoreError
from tests.device.bundles import add_release, release_in_use, write_bundle


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {number: write_bundle(root / str(number), number) for number in (1, 2, 3)}


@pytest.fixture
def store(tmp_path: Path, releases: dict[int, Path]) -> Path:
    """Store with the confirmed release 1, and release 2 in probation."""
    add_release(tmp_path / "store", releases[1])
    add_release(tmp_path / "store", releases[2], probation=Probation(tries=3, healthy_s=60.0, healthy_predictions=5))
    return tmp_path / "store"


class Clock:
    """Clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _run(code: str, store: Path) -> int:
    script = f"import sys, os, signal, edgetl\nfrom tests.device.bundles import image\nstore = sys.argv[1]\n{code}\n"
    return subprocess.run([sys.executable, "-c", script, str(store)], check=False, cwd=Path(__file__).parents[2]).returncode


CRASH = "os.kill(os.getpid(), signal.SIGKILL)"


def test_load_uses_the_active_release_of_a_store(store: Path) -> None:
    assert active_release(store).record.release == 2
    assert release_in_use(store) == 2


def test_a_release_that_crashes_is_rolled_back_after_three_crashes(store: Path) -> None:  # D5
    for _ in range(3):
        assert _run(f"from edgetl.core.store import starts\nnext(starts(store))\n{CRASH}", store) == -signal.SIGKILL
        assert active_release(store).record.release == 2
    assert release_in_use(store) == 1
    state = read_state(store)
    assert state.probation is None
    assert "3 processes crashed" in state.rejected[-1].reason
    assert state.history[-1].action == "rollback"


@pytest.mark.parametrize("code", ["", "predictor.predict(image())"], ids=["before its first prediction", "after its first prediction"])
def test_a_crash_of_a_loaded_release_counts(store: Path, code: str) -> None:  # D5
    _run(f"predictor = edgetl.load(store)\n{code}\n{CRASH}", store)
    next(starts(store))
    state = read_state(store)
    assert state.probation is not None
    assert state.probation.crashes == 1


def test_a_process_that_still_runs_is_not_a_crash(store: Path) -> None:
    running = [next(starts(store)) for _ in range(3)]
    code = "import subprocess\n" + "predictor = edgetl.load(store)\nprint(flush=True)\nsys.stdin.read()"
    script = f"import sys, edgetl\nstore = sys.argv[1]\n{code}"
    others = [subprocess.Popen([sys.executable, "-c", script, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for other in others:
        assert other.stdout is not None
        other.stdout.readline()
    assert next(starts(store)).release.record.release == 2
    for other in others:
        other.communicate()
    assert read_state(store).probation is not None
    assert all(start.observed for start in running)


def test_an_orderly_end_is_not_a_crash(store: Path) -> None:
    assert _run("predictor = edgetl.load(store)", store) == 0
    next(starts(store)).close()
    state = read_state(store)
    assert state.probation is not None
    assert state.probation.crashes == 0
    assert list((store / "starts").iterdir()) == []


def test_a_release_is_confirmed_after_the_predictions_of_orderly_processes(store: Path) -> None:
    for _ in range(2):
        assert _run("edgetl.load(store).predict([image()] * 3)", store) == 0
    state = read_state(store)
    assert state.probation is None
    assert state.history[-1].detail == "6 predictions without a failure"


def test_a_release_is_confirmed_after_the_healthy_period(store: Path) -> None:
    clock = Clock()
    start = next(starts(store, clock=clock))
    start.succeeded(1)
    clock.now = 59.0
    start.succeeded(1000)
    assert read_state(store).probation is not None
    clock.now = 60.0
    start.succeeded(1)
    assert read_state(store).probation is None
    assert list((store / "starts").iterdir()) == []


def test_a_crash_after_thirty_seconds_counts(store: Path) -> None:  # D5
    code = f"""
from edgetl.core.store import starts
now = [0.0]
start = next(starts(store, clock=lambda: now[0]))
start.succeeded(100)
now[0] = 30.0
start.succeeded(100)
{CRASH}"""
    _run(code, store)
    next(starts(store))
    state = read_state(store)
    assert state.probation is not None
    assert state.probation.crashes == 1


def test_a_slow_release_is_rolled_back(tmp_path: Path, releases: dict[int, Path]) -> None:  # D5
    store = tmp_path / "store"
    add_release(store, releases[1])
    add_release(store, releases[2], probation=Probation(max_latency_ms=10.0))
    start = next(starts(store))
    for _ in range(LATENCY_SAMPLES):
        start.succeeded(1, 0.011)
    assert start.rolled_back
    assert release_in_use(store) == 1
    assert "median latency is 11.0 ms, and the limit is 10 ms" in read_state(store).rejected[-1].reason


def test_a_release_that_cannot_be_loaded_is_rolled_back_at_once(store: Path) -> None:
    model = active_release(store).path / "onnx-fp32/1/model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert release_in_use(store) == 1
    assert "SHA-256" in read_state(store).rejected[-1].reason


def test_an_engine_error_of_the_first_prediction_rolls_back(store: Path) -> None:
    predictor = edgetl.load(store)
    with pytest.raises(EngineError):
        predictor.logits(np.zeros((1, 3, 9, 9), np.float32))
    assert release_in_use(store) == 1


def test_a_mistake_of_the_caller_does_not_roll_back(store: Path) -> None:
    for _ in range(4):
        with pytest.raises(BundleError, match="no variant"):
            edgetl.load(store, variant="onnx-int8")
    assert release_in_use(store) == 2


def test_a_store_is_not_ready_if_all_releases_failed(tmp_path: Path, releases: dict[int, Path]) -> None:  # D6
    store = tmp_path / "store"
    add_release(store, releases[1], probation=Probation(tries=1))
    next(starts(store)).failed("it crashed.")
    for _ in range(3):
        with pytest.raises(
            StoreError, match=r"is not ready: release 1 was rolled back, and no earlier release is left\. Reason: it crashed\."
        ):
            edgetl.load(store)


def test_a_damaged_confirmed_release_is_replaced_by_an_earlier_one(tmp_path: Path, releases: dict[int, Path]) -> None:
    store = tmp_path / "store"
    for number in (1, 2):
        add_release(store, releases[number])
    manifest = active_release(store).path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"red", b"rad"))
    assert release_in_use(store) == 1
    assert active_release(store).record.release == 2


def test_if_both_releases_are_damaged_the_store_is_not_ready(tmp_path: Path, releases: dict[int, Path]) -> None:  # D6
    store = tmp_path / "store"
    for number in (1, 2):
        add_release(store, releases[number])
    for folder in (store / "releases").iterdir():
        (folder / "card.md").unlink()
    with pytest.raises(StoreError, match="none of its releases can be loaded"):
        edgetl.load(store)


STATES: dict[str, Callable[[Path], object]] = {
    "missing": lambda _: None,
    "empty": lambda path: path.touch(),
    "cut": lambda path: path.write_text("{"),
    "newer": lambda path: path.write_text('{"schema_version": 2}'),
    "zeros": lambda path: path.write_bytes(bytes(300)),
    "folder": lambda path: path.mkdir(),
    "FIFO": os.mkfifo,
}


@pytest.mark.parametrize("kind", STATES)
def test_a_damaged_state_is_recovered_from_the_newest_complete_release(store: Path, kind: str) -> None:  # D11
    (store / "state.json").unlink()
    STATES[kind](store / "state.json")
    assert release_in_use(store) == 2
    recovered = read_state(store)
    assert recovered.high_water == 2
    assert [record.release for record in recovered.records()] == [2, 1]
    assert recovered.probation is not None
    assert (store / "state-damaged.json").exists() == (kind != "missing")


def test_a_state_that_points_to_a_missing_folder_uses_an_earlier_release(store: Path) -> None:  # D11
    os.rename(active_release(store).path, store / "moved")
    assert release_in_use(store) == 1


def test_a_folder_without_releases_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a store"):
        active_release(tmp_path)
    with pytest.raises(StoreError, match="does not exist"):
        active_release(tmp_path / "missing")
