"""One bundle takes another's place while requests run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from edgetl.core.bundle import Bundle
from tests.command import edgetl
from tests.serve.serving import Served, point, released, serving, until


class Readers:
    """Clients that check that each answer is one release's, whole."""

    def __init__(self, served: Served, photo: bytes, count: int) -> None:
        self.versions: list[str] = []
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(served, photo)) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, served: Served, photo: bytes) -> None:
        with httpx.Client(timeout=60) as web:
            # At least one, however soon the test ends.
            while not self._stop.is_set() or not self.versions:
                try:
                    answer = web.post(f"{served.url}/predict", content=photo)
                    said = answer.json()
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))
                    continue
                if answer.status_code != 200 or any(not label.endswith(f" of {said['version']}") for label in said["scores"]):
                    self.wrong.append(answer.text)
                else:
                    self.versions.append(said["version"])

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize(("times", "clients"), [(4, 8), pytest.param(100, 32, marks=pytest.mark.slow)])
def test_good_bundles_take_each_others_place_under_load(bundle: Bundle, photo: bytes, tmp_path: Path, times: int, clients: int) -> None:
    """C21."""
    link = tmp_path / "current"
    folders = [released(bundle, tmp_path / f"release-{number}", number) for number in range(1, 3)]
    point(link, folders[0])
    with serving(link) as served:
        readers = Readers(served, photo, clients)
        for number in range(times):
            folder = folders[(number + 1) % 2]
            manifest = json.loads((folder / "manifest.json").read_text())
            shutil.rmtree(folder)
            released(bundle, folder, number + 2)
            assert manifest["release"] <= number + 2
            point(link, folder)
            served.process.send_signal(signal.SIGHUP)
            until(lambda number=number: served.metric('edgetl_reload_total{result="done"') == number + 1, seconds=60)  # type: ignore[misc]
        readers.end()
        assert not readers.wrong and set(readers.versions) >= {"1", str(times)}
        assert served.metric("edgetl_workers_replaced_total") == 0
        until(lambda: len(served.workers()) == 1)
        assert served.metric("edgetl_model_info") == 1
    print(len(readers.versions), "answers")


def test_a_swapped_link_is_seen(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    link = tmp_path / "current"
    point(link, released(bundle, tmp_path / "one", 1))
    with serving(link, options=("--watch",)) as served:
        readers = Readers(served, photo, 4)
        point(link, released(bundle, tmp_path / "two", 2))
        until(lambda: "2" in readers.versions)
        readers.end()
        assert not readers.wrong and "reloaded" in served.said()


def _corrupt(folder: Path) -> None:
    path = folder / "onnx-fp32/1/model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _answer_otherwise(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    scores = manifest["golden"][0]["scores"]["onnx-fp32"]
    manifest["golden"][0]["scores"]["onnx-fp32"] = [*scores[1:], scores[0]]
    path.write_text(json.dumps(manifest) + "\n")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _no_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    "spoil", [_corrupt, _answer_otherwise, _empty, _no_json, None], ids=["changed", "golden", "empty", "no manifest", "older"]
)
def test_a_bad_bundle_leaves_the_old_one_serving(bundle: Bundle, photo: bytes, tmp_path: Path, spoil: object) -> None:
    """C20."""
    link = tmp_path / "current"
    point(link, released(bundle, tmp_path / "good", 5))
    bad = released(bundle, tmp_path / "bad", 6 if spoil else 4)
    if callable(spoil):
        spoil(bad)
    with serving(link) as served:
        readers = Readers(served, photo, 4)
        point(link, bad)
        served.process.send_signal(signal.SIGHUP)
        until(lambda: served.metric('edgetl_reload_total{result="refused"') == 1)
        readers.end()
        assert not readers.wrong and set(readers.versions) == {"5"}
        assert "the server keeps the current bundles" in served.said() and "Traceback" not in served.said()
        # Whoever takes the place of a worker that dies loads what is served, not what the link points to by now.
        for worker in served.workers():
            os.kill(worker, signal.SIGKILL)
        until(lambda: served.metric("edgetl_workers_replaced_total") == 1)
        until(served.ready)
        assert httpx.post(f"{served.url}/predict", content=photo).json()["version"] == "5"


def test_two_releases_of_one_model_are_served_side_by_side(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    folders = [released(bundle, tmp_path / str(number), number) for number in (1, 10)]
    with serving(*folders) as served, httpx.Client(base_url=served.url) as web:
        name = bundle.manifest.name
        assert web.get(f"/v2/models/{name}").json()["versions"] == ["1", "10"]
        assert web.post("/predict", content=photo).json()["version"] == "10", "the newest, by number"
        old = web.post("/predict?version=1", content=photo).json()
        assert old["version"] == "1" and old["label"].endswith(" of 1")


def test_the_same_release_twice_is_refused(bundle: Bundle) -> None:
    done = edgetl("serve", bundle.path, bundle.path, "--variant", "onnx-fp32")
    assert done.returncode == 3 and "two bundles have the name" in done.stderr and "Traceback" not in done.stderr


def test_sigterm_during_a_reload_ends_well(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    with serving(bundle.path) as served:
        served.process.send_signal(signal.SIGHUP)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 0 and "Traceback" not in served.said()
        assert not served.workers()


def test_many_hangups_are_not_as_many_reloads(bundle: Bundle) -> None:
    with serving(bundle.path) as served:
        for _ in range(20):
            served.process.send_signal(signal.SIGHUP)
            time.sleep(0.05)
        until(lambda: served.metric("edgetl_reload_total") >= 1)
        time.sleep(4)
        assert served.metric("edgetl_reload_total") <= 6


def test_a_path_that_leads_in_a_circle_is_a_clean_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    done = edgetl("serve", tmp_path / "a")
    assert done.returncode == 8 and "cannot be resolved" in done.stderr and "Traceback" not in done.stderr
