"""Reload of bundles while the server computes requests."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from edgetl.core.bundle import Bundle
from tests.command import edgetl
from tests.runtime.hostile import CLASSES, forge, hungry
from tests.serve.clients import Clients
from tests.serve.serving import Served, point, serving, until, with_release

REFUSED, DONE = 'edgetl_reload_total{result="refused"', 'edgetl_reload_total{result="done"'


class LinkServer:
    """Server of a symbolic link to a bundle of release 5."""

    def __init__(self, served: Served, link: Path) -> None:
        self.served, self._link = served, link
        self._target = link.resolve()

    def reload(self, target: Path, metric: str) -> None:
        """Point the link to ``target``, send SIGHUP, and wait until ``metric`` has increased."""
        before = self.served.metric(metric)
        point(self._link, target)
        self.served.process.send_signal(signal.SIGHUP)
        until(lambda: self.served.metric(metric) > before)

    def restore(self) -> None:
        """Point the link to release 5."""
        point(self._link, self._target)


@pytest.fixture(scope="module")
def link_server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinkServer]:
    work = tmp_path_factory.mktemp("link")
    point(work / "current", with_release(bundle, work / "good", 5))
    with serving(work / "current") as served:
        yield LinkServer(served, work / "current")
        assert "Traceback" not in served.log()


def _change_a_byte(folder: Path) -> None:
    path = folder / "onnx-fp32/1/model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _change_golden_scores(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    scores = manifest["golden"][0]["scores"]["onnx-fp32"]
    manifest["golden"][0]["scores"]["onnx-fp32"] = [*scores[1:], scores[0]]
    path.write_text(json.dumps(manifest) + "\n")


def _remove_files(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _truncate_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [_change_a_byte, _change_golden_scores, _remove_files, _truncate_manifest])
def test_damaged_bundle_is_refused(
    link_server: LinkServer, bundle: Bundle, photo: bytes, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    served, damaged = link_server.served, with_release(bundle, tmp_path / "damaged", 6)
    damage(damaged)
    clients = Clients(served, photo, 2)
    link_server.reload(damaged, REFUSED)
    then = clients.versions.total()
    until(lambda: clients.versions.total() > then)
    clients.end()
    link_server.restore()
    assert not clients.errors and set(clients.versions) == {"5"}
    assert "the server keeps the current bundles" in served.log()


def test_older_release_is_refused(link_server: LinkServer, bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    """A replacement worker loads the served bundle, although the link has another target."""
    served = link_server.served
    link_server.reload(with_release(bundle, tmp_path / "older", 4), REFUSED)
    assert "would change from release 5 back to 4" in served.log()
    before = served.metric("edgetl_workers_replaced_total")
    served.signal_workers(signal.SIGKILL)
    until(lambda: served.metric("edgetl_workers_replaced_total") > before)
    until(served.ready)
    assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).json()["version"] == "5"
    link_server.restore()


def test_model_that_needs_gigabytes_is_refused(link_server: LinkServer, bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    served, worker = link_server.served, link_server.served.workers()
    forged = forge(bundle, tmp_path / "forged", "onnx-fp32", [hungry(3.3)], scores=[1 / CLASSES] * CLASSES)
    link_server.reload(forged, REFUSED)
    link_server.restore()
    assert "in a separate process failed" in served.log()
    assert served.workers() == worker and httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200


@pytest.mark.parametrize(("times", "count"), [(3, 4), pytest.param(100, 32, marks=pytest.mark.slow)], ids=["short", "long"])
def test_reload_under_load_loses_no_request(bundle: Bundle, photo: bytes, tmp_path: Path, times: int, count: int) -> None:
    """Every response belongs to one release, and many SIGHUPs are not as many reloads."""
    link, folders = tmp_path / "current", [tmp_path / "a", tmp_path / "b"]
    point(link, with_release(bundle, folders[0], 1))
    with serving(link) as served:
        clients = Clients(served, photo, count)
        for release in range(2, times + 2):
            folder = folders[(release + 1) % 2]
            shutil.rmtree(folder, ignore_errors=True)
            point(link, with_release(bundle, folder, release))
            for _ in range(20):
                served.process.send_signal(signal.SIGHUP)
            until(lambda version=str(release): clients.versions[version] > 0)  # type: ignore[misc]
        clients.end()
        until(lambda: len(served.workers()) == 1)
        assert not clients.errors and set(clients.statuses) == {200}
        assert served.metric(DONE) < 20 * times and served.metric("edgetl_workers_replaced_total") == 0
        assert served.metric("edgetl_model_info") == 1


def test_watch_reloads_after_the_link_changes(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    link = tmp_path / "current"
    point(link, with_release(bundle, tmp_path / "one", 1))
    with serving(link, options=("--watch",)) as served:
        clients = Clients(served, photo, 2)
        point(link, with_release(bundle, tmp_path / "two", 2))
        until(lambda: clients.versions["2"] > 0)
        clients.end()
        assert not clients.errors and "reloaded" in served.log()


def test_two_releases_of_a_model_are_served_together(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    folders = [with_release(bundle, tmp_path / str(number), number) for number in (1, 10)]
    with serving(*folders) as served, httpx.Client(base_url=served.url, timeout=None) as web:
        name = bundle.manifest.name
        assert web.get(f"/v2/models/{name}").json()["versions"] == ["1", "10"]
        assert web.post("/predict", content=photo).json()["version"] == "10", "releases are compared as numbers"
        old = web.post("/predict?version=1", content=photo).json()
        assert old["version"] == "1" and old["label"].endswith(" of 1")
        # SIGTERM during a reload ends the server and its workers.
        served.process.send_signal(signal.SIGHUP)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait() == 0 and "Traceback" not in served.log()
        assert not served.workers()


def test_link_that_points_to_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    done = edgetl("serve", tmp_path / "a")
    assert done.returncode == 8 and "cannot be resolved" in done.stderr and "Traceback" not in done.stderr
