"""Loop of the runner: one record per accepted frame, back-off, limits, reload, health file, systemd."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.manifest import Manifest
from edgetl.core.results import Prediction
from edgetl.core.store import active_release
from edgetl.core.store.state import Probation, read_state
from edgetl.device.keys import PrivateKey
from edgetl.device.runner import loop as loop_module
from edgetl.device.runner import model as model_module
from edgetl.device.runner.health import Health
from edgetl.device.runner.loop import Runner
from edgetl.device.runner.model import Check, Model
from edgetl.device.runner.sinks.record import Record, SinkStatus
from edgetl.device.runner.sources.frame import Frame, Frames
from edgetl.device.runner.systemd import Notifier, UnitPaths, unit
from edgetl.device.runner.waiting import Backoff, Stop
from edgetl.device.signature import Trust, sign_bundle, verified_bundle
from edgetl.errors import EngineError, ImageError, StorageError
from tests.device.bundles import add_release, image, network, write_bundle

RED, GREEN = image(), image((20, 200, 40))


class Given:
    """Source with given frames."""

    def __init__(self, *frames: Frame | bytes | None) -> None:
        self.name, self.problem = "given", ""
        self.dropped = self.missing = 0
        self.finished: list[str] = []
        self._frames = frames

    def frames(self) -> Frames:
        for number, frame in enumerate(self._frames, 1):
            yield Frame(f"image {number}", frame) if isinstance(frame, bytes) else frame

    def finish(self, frame: Frame) -> None:
        self.finished.append(frame.name)


class Collected:
    """Sink that keeps the records, and refuses as many calls as ``away`` states."""

    def __init__(self, away: int = 0) -> None:
        self.records: list[dict[str, Any]] = []
        self.away = away
        self.closed = False

    def put(self, record: Record) -> bool:
        if self.away:
            self.away -= 1
            return False
        self.records.append(json.loads(record.to_json()))
        return True

    def status(self) -> SinkStatus:
        return SinkStatus(name="collected", delivered=len(self.records), problem="away" if self.away else "")

    def close(self, timeout_s: float) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next", lambda _: 0.001)
    monkeypatch.setattr(model_module, "_WATCH_S", 0.0)


@pytest.fixture
def stop() -> Iterator[Stop]:
    stop = Stop()
    yield stop
    stop.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", 1)


def runner(bundle: Path, source: Given, sinks: list[Collected], stop: Stop, **more: Any) -> Runner:
    return Runner(Model(bundle, variant=None, threads=1), source, sinks, stop=stop, **more)


def test_each_accepted_frame_has_one_record_in_every_sink(bundle: Path, stop: Stop) -> None:
    source, sinks = Given(RED, None, b"no image", Frame("cut", ImageError("it was cut off")), GREEN), [Collected(), Collected()]
    counts = runner(bundle, source, sinks, stop).run(flush_s=1)
    assert (counts.accepted, counts.predicted, counts.failed, counts.state) == (4, 2, 2, "stopped")
    for sink in sinks:
        assert [item.get("label") for item in sink.records] == ["red", None, None, "green"] and sink.closed
        assert "is not a JPEG" in sink.records[1]["error"] and sink.records[2]["error"] == "it was cut off"
        assert len({item["id"] for item in sink.records}) == 4
        assert {(item["model"], item["release"]) for item in sink.records} == {("colors", 1)}
    assert source.finished == ["image 1", "image 3", "cut", "image 5"]
    assert counts.last_error is not None and counts.last_error.message == "it was cut off"


def test_record_has_the_prediction_of_the_predictor(bundle: Path, stop: Stop) -> None:
    sink = Collected()
    started = runner(bundle, Given(RED), [sink], stop)
    started.run(flush_s=1)
    expected = Model(bundle, variant=None, threads=1).predictor.predict(RED)
    (item,) = sink.records
    assert item["scores"] == dict(zip(("red", "green", "blue"), expected.scores, strict=True))
    assert (item["label"], item["score"]) == (expected.label, expected.score) and item["ms"] > 0


def test_top_limits_the_scores(bundle: Path, stop: Stop) -> None:
    sink = Collected()
    started = runner(bundle, Given(GREEN), [sink], stop)
    started.top = 2
    started.run(flush_s=1)
    assert list(sink.records[0]["scores"]) == ["green", "blue"]


def test_no_frame_is_accepted_while_a_sink_takes_no_record(bundle: Path, stop: Stop) -> None:
    source, slow = Given(RED, GREEN), Collected(away=5)
    counts = runner(bundle, source, [slow], stop).run(flush_s=1)
    assert [item["label"] for item in slow.records] == ["red", "green"] and counts.accepted == 2
    assert counts.last_error is not None and counts.last_error.message == "collected takes no records: away"


def test_record_that_no_sink_takes_before_the_end_is_an_error(bundle: Path, stop: Stop) -> None:
    class Stopping(Collected):
        def put(self, record: Record) -> bool:
            stop.request()
            return False

    with pytest.raises(StorageError, match="the record of image 1 is lost, because collected took no records before the end"):
        runner(bundle, Given(RED, GREEN), [Stopping()], stop).run(flush_s=1)


def test_stop_finishes_the_frame_in_progress(bundle: Path, stop: Stop) -> None:
    class Stopping(Collected):
        def put(self, record: Record) -> bool:
            stop.request()
            return super().put(record)

    sink, source = Stopping(), Given(*[RED] * 5)
    counts = runner(bundle, source, [sink], stop).run(flush_s=1)
    assert len(sink.records) == counts.accepted == 1 and source.finished == ["image 1"] and sink.closed


def test_limit_and_rate_are_kept(bundle: Path, stop: Stop) -> None:
    sink = Collected()
    started = runner(bundle, Given(*[RED] * 9), [sink], stop)
    started.limit, started.max_fps = 5, 50.0
    before = time.monotonic()
    started.run(flush_s=1)
    assert len(sink.records) == 5
    assert time.monotonic() - before >= 3 / 50, "a lower limit holds on a host of any speed"


def test_engine_failure_has_a_record_and_ends_the_process(tmp_path: Path, stop: Stop) -> None:
    broken = write_bundle(tmp_path / "broken", 1, model=network(float("nan")))
    sink, source = Collected(), Given(RED, RED)
    with pytest.raises(EngineError, match="returned a score that is not a number"):
        runner(broken, source, [sink], stop).run(flush_s=1)
    assert len(sink.records) == 1 and "not a number" in sink.records[0]["error"] and sink.closed


def test_new_bundle_is_loaded_between_two_frames(tmp_path: Path, stop: Stop) -> None:
    for number in (1, 2):
        write_bundle(tmp_path / str(number), number)
    link, sink = tmp_path / "current", Collected()
    link.symlink_to("1")

    class Switching(Given):
        def frames(self) -> Frames:
            yield Frame("before", RED)
            link.unlink()
            yield None
            link.symlink_to("2")
            yield None
            yield Frame("after", RED)

    started = runner(link, Switching(), [sink], stop)
    started.watch = True
    assert started.run(flush_s=1).reloads == 1
    assert [item["release"] for item in sink.records] == [1, 2]
    assert sink.records[0]["scores"] != sink.records[1]["scores"]


def test_damaged_new_bundle_leaves_the_loaded_one(bundle: Path, tmp_path: Path, stop: Stop) -> None:
    sink = Collected()

    class Damaging(Given):
        def frames(self) -> Frames:
            yield Frame("before", RED)
            (bundle / "manifest.json").write_text("{}\n")
            yield from [None] * 3
            yield Frame("after", RED)

    started = runner(bundle, Damaging(), [sink], stop)
    started.watch = True
    counts = started.run(flush_s=1)
    assert [item["release"] for item in sink.records] == [1, 1] and counts.reloads == 0
    assert counts.last_error is not None and "manifest.json" in counts.last_error.message


def test_new_bundle_without_a_trusted_signature_is_not_loaded(tmp_path: Path, stop: Stop, key: PrivateKey, trust: Trust) -> None:
    first, second = (write_bundle(tmp_path / str(number), number) for number in (1, 2))
    sign_bundle(first, key)
    link, sink = tmp_path / "current", Collected()
    link.symlink_to("1")

    class Switching(Given):
        def frames(self) -> Frames:
            yield Frame("before", RED)
            link.unlink()
            link.symlink_to("2")
            yield None
            yield Frame("unsigned", RED)
            sign_bundle(second, key)
            (second / "manifest.json").touch()
            yield None
            yield Frame("signed", RED)

    model = Model(link, variant=None, threads=1, check=Check(lambda path: verified_bundle(path, trust)[0], lambda _: None))
    started = Runner(model, Switching(), [sink], stop=stop)
    started.watch = True
    counts = started.run(flush_s=1)
    assert [item["release"] for item in sink.records] == [1, 1, 2]
    assert counts.last_error is not None and "has no signature" in counts.last_error.message


def test_new_active_release_of_a_store_is_loaded(tmp_path: Path, stop: Stop) -> None:
    store, sink = tmp_path / "store", Collected()
    add_release(store, write_bundle(tmp_path / "1", 1))
    second = write_bundle(tmp_path / "2", 2)

    class Installing(Given):
        def frames(self) -> Frames:
            yield Frame("before", RED)
            add_release(store, second, probation=Probation(tries=3, healthy_s=60.0, healthy_predictions=3))
            yield None
            for number in range(4):
                yield Frame(f"after {number}", RED)

    started = runner(store, Installing(), [sink], stop)
    started.watch = True
    started.run(flush_s=1)
    assert [item["release"] for item in sink.records] == [1, 2, 2, 2, 2]
    del started
    state = read_state(store)
    assert state.probation is None and "4 predictions" in state.history[-1].detail, "confirmed by an orderly end"


def test_release_that_fails_is_rolled_back_and_the_frame_is_predicted_by_the_previous_one(tmp_path: Path, stop: Stop) -> None:
    class Failing:
        def run(self, batch: object) -> object:
            raise EngineError("the engine failed")

    store, sink = tmp_path / "store", Collected()
    add_release(store, write_bundle(tmp_path / "1", 1))
    add_release(store, write_bundle(tmp_path / "2", 2), probation=Probation(tries=3, healthy_s=60.0, healthy_predictions=3))
    model = Model(store, variant=None, threads=1)
    model.predictor._engine._engine = Failing()  # type: ignore[attr-defined]
    counts = Runner(model, Given(RED, RED), [sink], stop=stop).run(flush_s=1)
    assert [(item["release"], item.get("label")) for item in sink.records] == [(1, "red"), (1, "red")]
    assert counts.reloads == 1 and active_release(store).record.release == 1


def test_observer_receives_inputs_and_an_image_that_outlives_its_file(bundle: Path, tmp_path: Path, stop: Stop) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    seen: list[tuple[str, Prediction, Any, Any]] = []

    class Observer:
        def observe(self, manifest: Manifest, prediction: Prediction, *, inputs: Any = None, image: Any = None, source: str = "") -> None:
            seen.append((source, prediction, inputs, image))

    started = runner(
        bundle, Given(Frame("kept", tmp_path / "a.png"), Frame("moved", tmp_path / "a.png", tmp_path / "a.png"), b"x"), [Collected()], stop
    )
    started.observer = Observer()
    started.run(flush_s=1)
    assert [(item[0], item[3]) for item in seen] == [("kept", tmp_path / "a.png"), ("moved", RED)]
    assert seen[0][2].shape == (1, 3, 8, 8) and seen[0][1].label == "red"


def test_health_file_is_complete_at_every_moment(bundle: Path, tmp_path: Path, stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "HEALTH_S", 0.0)
    path, seen = tmp_path / "health.json", []

    class Looking(Collected):
        def put(self, record: Record) -> bool:
            seen.append(Health.model_validate_json(path.read_text()))
            return super().put(record)

    source = Given(RED, b"x", GREEN)
    source.dropped = 7
    runner(bundle, source, [Looking()], stop, health=path).run(flush_s=1)
    last = Health.model_validate_json(path.read_text())
    assert [item.accepted for item in [*seen, last]] == [0, 1, 2, 3]
    assert (last.state, last.predicted, last.failed, last.dropped, last.pid) == ("stopped", 2, 1, 7, os.getpid())
    assert last.sinks == (SinkStatus(name="collected", delivered=3),) and last.last_error is not None
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bundle", "health.json"]


def test_health_file_that_cannot_be_written_does_not_stop_the_runner(bundle: Path, tmp_path: Path, stop: Stop) -> None:
    counts = runner(bundle, Given(RED), [Collected()], stop, health=tmp_path / "missing/health.json").run(flush_s=1)
    assert counts.predicted == 1


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_notified_of_the_start_each_sign_of_life_and_the_end(
    bundle: Path, tmp_path: Path, stop: Stop, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    monkeypatch.setattr(loop_module, "_ALIVE_S", 0.0)
    address = f"@edgetl-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{address[1:]}" if abstract else address)
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())})
        runner(bundle, Given(RED, b"x"), [Collected()], stop, notifier=notifier).run(flush_s=1)
        systemd.setblocking(False)
        messages = [systemd.recv(4096).decode().splitlines() for _ in range(4)]
    assert notifier.watchdog_s == 60
    assert [message[0] for message in messages] == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]
    assert messages[2][1].startswith("STATUS=running: colors 1, 2 frames, 1 unreadable, 0 dropped")


def test_notifier_without_systemd_or_for_another_process_does_nothing() -> None:
    Notifier({}).alive("x")
    Notifier({"NOTIFY_SOCKET": "/missing/socket"}).alive("x")
    assert Notifier({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "1000000"}).watchdog_s is None


COMMAND = ("/opt/edgetl/bin/edgetl", "run", "/srv/a b", "--source", "/in/100%", "--sink", 'jsonl:/out/$x"y\\z', "--processed", "")


def test_unit_is_valid_and_quotes_its_command(tmp_path: Path) -> None:
    tune, paths = ("/opt/edgetl/bin/edgetl", "tune", "/a store"), UnitPaths((Path("/out"), Path("/in put")), camera=True)
    text = unit(COMMAND, paths, user="camera", endless=True, memory_max_mb=512, after_start=tune)
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    service = parser["Service"]
    assert service["MemoryMax"] == "512000000" and service["NoNewPrivileges"] == "yes" and service["Restart"] == "always"
    assert service["Type"] == "notify" and float(service["WatchdogSec"]) >= 3 * loop_module._ALIVE_S
    assert 'ReadWritePaths="/in put"' in text and "PrivateDevices" not in text and "DeviceAllow=char-video4linux rw" in text
    words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(service["ExecStart"])]
    assert tuple(words) == COMMAND
    assert (service["ExecStartPost"], service["OOMPolicy"]) == ('-/opt/edgetl/bin/edgetl tune "/a store"', "continue")
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    runnable = text.replace("/opt/edgetl/bin/edgetl", "/bin/true")
    (tmp_path / "edgetl-run.service").write_text(runnable)
    checked = subprocess.run(["systemd-analyze", "verify", tmp_path / "edgetl-run.service"], capture_output=True, text=True, check=False)
    # Earlier versions of systemd do not know the growing waits between restarts, and ignore them.
    problems = [line for line in checked.stderr.splitlines() if "edgetl-run.service" in line and "Restart" not in line]
    assert not problems and "Failed to create" not in checked.stderr


def test_memory_limit_of_the_control_group_becomes_an_error_of_the_image(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, numpy\n"
        "from edgetl.core.system import cgroup\n"
        "from edgetl.device.runner import limits\n"
        "limits.memory_limit = lambda: 300_000_000\n"
        "assert limits.follow_memory_limit() == 300_000_000\n"
        "small = numpy.ones(50_000_000, numpy.uint8)\n"
        "try:\n    numpy.ones(500_000_000, numpy.uint8)\nexcept MemoryError:\n    print('MemoryError')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "MemoryError\n"
