"""Power loss during a change of a store: the old or the new release is active afterwards, and complete."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device.power_loss import Change, Recorder, durable, recording
from tests.device.store_operations import NAMES, Operation, check, operations, prepare, serving, without_self_test

# Points of the normal tests: every n-th change. The slow tests use all.
STEP = 15


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    patch = without_self_test()
    yield
    patch.undo()


@pytest.fixture(scope="module")
def root(_quick: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with the bundles and stores of the operations."""
    folder = tmp_path_factory.mktemp("power")
    prepare(folder)
    with serving(folder):
        yield folder


@pytest.fixture(scope="module")
def changes(root: Path) -> dict[str, Operation]:
    """Operations by their names."""
    return operations(root)


def _changes(operation: Operation, place: Path) -> list[Change]:
    shutil.copytree(operation.before, place)
    with recording(Recorder(place)) as recorder:
        operation.run(place)
    shutil.rmtree(place)
    return recorder.changes


def _stop_everywhere(operation: Operation, work: Path, step: int) -> list[float]:
    """Stop at every ``step``-th change. Return the times to load the store afterwards, seconds."""
    times = []
    for point in range(0, len(_changes(operation, work / "store")), step):
        shutil.copytree(operation.before, work / "store")
        with recording(Recorder(work / "store", stop_at=point)) as recorder:
            operation.run(work / "store")
        assert recorder.stopped
        times.append(check(operation, work / "store"))
        shutil.rmtree(work / "store")
    return times


def _lose_everywhere(operation: Operation, work: Path, step: int) -> list[float]:
    """Lose the unflushed data after every ``step``-th change. Return the times to load the store afterwards, seconds."""
    changes, times = _changes(operation, work / "store"), list[float]()
    for point in range(0, len(changes) + 1, step):
        for lose in ("zeros", "names"):
            durable(changes[:point], operation.before, work / "store", work / "after", lose=lose)
            times.append(check(operation, work / "after"))
            shutil.rmtree(work / "after")
    return times


def _stop_processes(root: Path, step: int) -> dict[str, tuple[int, float]]:
    """Stop real processes (``stopped_process``). Return the number of processes and the longest time to load, for each operation."""
    command = [sys.executable, "-m", "tests.device.stopped_process", str(root), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["operation"]: (row["points"], row["longest_s"]) for row in rows}


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_process_leaves_the_old_or_the_new_release(changes: dict[str, Operation], tmp_path: Path, name: str) -> None:  # D1
    _stop_everywhere(changes[name], tmp_path, STEP)


@pytest.mark.parametrize("name", NAMES)
def test_unflushed_changes_can_be_lost(changes: dict[str, Operation], tmp_path: Path, name: str) -> None:  # D2
    _lose_everywhere(changes[name], tmp_path, STEP)


def test_an_ended_process_leaves_the_old_or_the_new_release(root: Path) -> None:  # D1
    assert list(_stop_processes(root, 4 * STEP)) == list(NAMES)


@pytest.mark.slow
def test_a_process_can_stop_at_every_change(changes: dict[str, Operation], tmp_path: Path) -> None:  # D1
    times = {name: _stop_everywhere(changes[name], tmp_path, 1) for name in NAMES}
    _print(times)
    assert sum(map(len, times.values())) >= 200


@pytest.mark.slow
def test_a_process_can_end_at_every_change(root: Path) -> None:  # D1
    found = _stop_processes(root, 1)
    print(found)
    assert sum(points for points, _ in found.values()) >= 200


@pytest.mark.slow
def test_unflushed_changes_can_be_lost_at_every_change(changes: dict[str, Operation], tmp_path: Path) -> None:  # D2
    _print({name: _lose_everywhere(changes[name], tmp_path, 1) for name in NAMES})


def _print(times: dict[str, list[float]]) -> None:
    for name, seconds in times.items():
        print(f"{name}: {len(seconds)} stores, loaded within {max(seconds):.3f} s")
