"""Power loss during a change of a store: the old or the new release is active afterwards, and complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from edgetl.core.store import starts
from edgetl.device.store.cleanup import clean
from edgetl.device.store.install import install
from edgetl.device.store.status import confirm, roll_back
from edgetl.device.transport import pack
from tests.device.bundles import pass_self_test, release_in_use, write_bundle
from tests.device.power_loss import Change, Recorder, durable, recording

# Points of the normal tests: every n-th change. The slow tests use all.
STEP = 15


class Operation(NamedTuple):
    """Change of a store, and the releases that may be active after a power loss."""

    run: Callable[[Path], object]
    before: Path
    allowed: frozenset[int]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetl.device.store.install.self_test", pass_self_test)


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Operation]:
    root = tmp_path_factory.mktemp("power")
    bundles = {number: write_bundle(root / str(number), number, precisions=("fp32", "int8")) for number in (1, 2, 3, 4)}
    pack(bundles[4], root / "4.edgetl")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("edgetl.device.store.install.self_test", pass_self_test)
        for number in (1, 2, 3):
            install(str(bundles[number]), root / "store")
            if number == 3:
                shutil.copytree(root / "store", root / "observed")
            confirm(root / "store")
    confirmed, observed = root / "store", root / "observed"
    return {
        "install a folder": Operation(lambda store: install(str(bundles[4]), store), confirmed, frozenset({3, 4})),
        "install a file": Operation(lambda store: install(str(root / "4.edgetl"), store), confirmed, frozenset({3, 4})),
        "install while another release is in probation": Operation(
            lambda store: install(str(bundles[4]), store), observed, frozenset({3, 4})
        ),
        "confirm": Operation(confirm, observed, frozenset({3})),
        "rollback": Operation(roll_back, confirmed, frozenset({2, 3})),
        "gc": Operation(lambda store: clean(store, keep=1), confirmed, frozenset({3})),
        "start": Operation(lambda store: next(starts(store)).close(), observed, frozenset({3})),
    }


NAMES = ("install a folder", "install a file", "install while another release is in probation", "confirm", "rollback", "gc", "start")


def _changes(operation: Operation, place: Path) -> list[Change]:
    shutil.copytree(operation.before, place)
    with recording(Recorder(place)) as recorder:
        operation.run(place)
    shutil.rmtree(place)
    return recorder.changes


def _check(operation: Operation, place: Path) -> None:
    """Check that a release is usable, that the operation can be repeated, and that nothing incomplete is left then."""
    assert release_in_use(place) in operation.allowed
    if operation.run is confirm or operation.run is roll_back:
        return
    operation.run(place)
    assert release_in_use(place) == max(operation.allowed)
    names = [path.name for path in (place / "releases").iterdir()]
    assert len(names) <= 3
    assert not any(name.startswith(".") for name in names)


def _stop_everywhere(operation: Operation, work: Path, step: int) -> int:
    total = len(_changes(operation, work / "store"))
    for point in range(0, total, step):
        shutil.copytree(operation.before, work / "store")
        with recording(Recorder(work / "store", stop_at=point)) as recorder:
            operation.run(work / "store")
        assert recorder.stopped
        _check(operation, work / "store")
        shutil.rmtree(work / "store")
    return total


def _lose_everywhere(operation: Operation, work: Path, step: int) -> None:
    changes = _changes(operation, work / "store")
    for point in range(0, len(changes) + 1, step):
        for lose in ("zeros", "names"):
            durable(changes[:point], operation.before, work / "store", work / "after", lose=lose)
            _check(operation, work / "after")
            shutil.rmtree(work / "after")


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_process_leaves_the_old_or_the_new_release(operations: dict[str, Operation], tmp_path: Path, name: str) -> None:  # D1
    _stop_everywhere(operations[name], tmp_path, STEP)


@pytest.mark.parametrize("name", NAMES)
def test_unflushed_changes_can_be_lost(operations: dict[str, Operation], tmp_path: Path, name: str) -> None:  # D2
    _lose_everywhere(operations[name], tmp_path, STEP)


@pytest.mark.slow
def test_a_process_can_stop_at_every_change(operations: dict[str, Operation], tmp_path: Path) -> None:  # D1
    points = {name: _stop_everywhere(operations[name], tmp_path, 1) for name in NAMES}
    print(points)
    assert sum(points.values()) >= 200


@pytest.mark.slow
def test_unflushed_changes_can_be_lost_at_every_change(operations: dict[str, Operation], tmp_path: Path) -> None:  # D2
    for name in NAMES:
        _lose_everywhere(operations[name], tmp_path, 1)
