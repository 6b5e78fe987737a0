"""Changes of a store, for the tests of power losses: each one, the store before it, and the releases that may be active after a loss."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from edgetl.core.store import starts
from edgetl.device.store.cleanup import clean
from edgetl.device.store.config import InstallConfig
from edgetl.device.store.install import install
from edgetl.device.store.status import confirm, roll_back
from edgetl.device.transport import pack
from tests.device.bundles import pass_self_test, release_in_use, write_bundle
from tests.device.file_server import served

NAMES = (
    "install a folder",
    "install a file",
    "install a URL",
    "install while another release is in probation",
    "confirm",
    "rollback",
    "gc",
    "start",
)


class Operation(NamedTuple):
    """Change of a store, and the releases that may be active after a power loss."""

    run: Callable[[Path], object]
    before: Path
    allowed: frozenset[int]


def prepare(root: Path) -> None:
    """Write the bundles and stores of ``operations`` below ``root``. Call it within ``without_self_test``."""
    bundles = {number: write_bundle(root / str(number), number, precisions=("fp32", "int8")) for number in (1, 2, 3, 4)}
    pack(bundles[4], root / "4.edgetl")
    for number in (1, 2, 3):
        install(str(bundles[number]), root / "store")
        if number == 3:
            shutil.copytree(root / "store", root / "observed")
        confirm(root / "store")


@contextmanager
def serving(root: Path) -> Iterator[None]:
    """Serve the transport file of ``install a URL``."""
    data = (root / "4.edgetl").read_bytes()
    with served(lambda handler: handler.send_rest(data)) as server:
        (root / "url").write_text(server.url)
        yield


def operations(root: Path) -> dict[str, Operation]:
    """Return the operations by their ``NAMES``. Release 3 is active before, confirmed or in probation. Call it within ``serving``."""
    confirmed, observed = root / "store", root / "observed"
    folder, file, url = str(root / "4"), str(root / "4.edgetl"), (root / "url").read_text()
    http = InstallConfig(allow_http=True)
    values = (
        Operation(lambda store: install(folder, store), confirmed, frozenset({3, 4})),
        Operation(lambda store: install(file, store), confirmed, frozenset({3, 4})),
        Operation(lambda store: install(url, store, http), confirmed, frozenset({3, 4})),
        Operation(lambda store: install(folder, store), observed, frozenset({3, 4})),
        Operation(confirm, observed, frozenset({3})),
        Operation(roll_back, confirmed, frozenset({2, 3})),
        Operation(lambda store: clean(store, keep=1), confirmed, frozenset({3})),
        Operation(lambda store: next(starts(store)).close(), observed, frozenset({3})),
    )
    return dict(zip(NAMES, values, strict=True))


def without_self_test() -> pytest.MonkeyPatch:
    """Replace the self-test of installations. The result restores it at the end of its ``context``."""
    patch = pytest.MonkeyPatch()
    patch.setattr("edgetl.device.store.install.self_test", pass_self_test)
    return patch


def check(operation: Operation, place: Path) -> float:
    """Check that a store is usable after a power loss, that the operation can be repeated, and that nothing incomplete is left then.

    Returns:
        time to load the active release and to predict an image, seconds.
    """
    begun = time.perf_counter()
    release = release_in_use(place)
    seconds = time.perf_counter() - begun
    assert release in operation.allowed
    if operation.run in (confirm, roll_back):
        return seconds
    operation.run(place)
    assert release_in_use(place) == max(operation.allowed)
    folders = list((place / "releases").iterdir())
    assert len(folders) <= 3
    assert all((folder / "manifest.json").is_file() and not folder.name.startswith(".") for folder in folders)
    return seconds
