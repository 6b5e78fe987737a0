"""``edgetl run`` with a store: waiting for a healthy release, and rollback of a release that is too slow."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgetl.core.store.probation import LATENCY_SAMPLES
from edgetl.core.store.state import Probation, read_state
from edgetl.device.runner.health import Health
from edgetl.device.runner.model import Model, wait_for_model
from edgetl.device.runner.not_ready import NotReady
from edgetl.device.runner.systemd import Notifier
from edgetl.device.runner.waiting import Stop
from edgetl.errors import BundleError
from edgetl.runtime.predictor import load
from tests.device.bundles import add_release, image, release_in_use, write_bundle


@pytest.fixture
def unhealthy(tmp_path: Path) -> Path:
    """Store whose only release is damaged."""
    record = add_release(tmp_path / "store", write_bundle(tmp_path / "1", 1), probation=Probation())
    (tmp_path / "store/releases" / record.id / "card.md").unlink()
    return tmp_path / "store"


def test_run_waits_for_a_healthy_release_and_reports_the_reason(unhealthy: Path, tmp_path: Path) -> None:  # D6
    second, health, photos = write_bundle(tmp_path / "2", 2), tmp_path / "health.json", tmp_path / "photos"
    photos.mkdir()
    (photos / "red.png").write_bytes(image())
    arguments = ["run", str(unhealthy), "--source", str(photos), "--threads", "1", "--health", str(health)]
    with subprocess.Popen([sys.executable, "-m", "edgetl.cli.app", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None and process.stdout is not None
        lines = iter(process.stderr.readline, b"")
        reason = next(line for line in lines if line.startswith(b"not ready: ")).decode()
        assert "release 1 was rolled back, and no earlier release is left" in reason and "card.md" in reason
        while not health.exists():
            time.sleep(0.01)
        found = Health.model_validate_json(health.read_text())
        assert (found.state, found.model, found.accepted) == ("not ready", None, 0)
        assert found.last_error is not None and found.last_error.message in reason
        add_release(unhealthy, second)
        assert json.loads(process.stdout.readline())["release"] == 2
        assert process.wait() == 0
    assert json.loads(health.read_text())["state"] == "stopped"


def test_a_stop_request_ends_the_wait_for_a_release(unhealthy: Path, tmp_path: Path) -> None:
    stop, reasons, health = Stop(), list[str](), tmp_path / "health.json"
    waiting = NotReady("photos", Notifier({}), health)

    def report(reason: str) -> None:
        reasons.append(reason)
        waiting.report(reason)
        if len(reasons) == 2:
            stop.request()

    assert wait_for_model(lambda: Model(unhealthy, variant=None, threads=1), stop, report) is None
    assert len(reasons) == 2, "one attempt before each wait"
    assert waiting.stop() == Health.model_validate_json(health.read_text())
    stop.close()


def test_a_mistake_of_the_caller_is_not_waited_for(tmp_path: Path) -> None:
    add_release(tmp_path / "store", write_bundle(tmp_path / "1", 1))
    stop = Stop()
    with pytest.raises(BundleError, match="no variant"):
        wait_for_model(lambda: Model(tmp_path / "store", variant="onnx-int8", threads=1), stop, lambda _reason: None)
    stop.close()


def test_a_release_with_slow_predictions_is_rolled_back(tmp_path: Path) -> None:  # D5
    store = tmp_path / "store"
    add_release(store, write_bundle(tmp_path / "1", 1))
    add_release(store, write_bundle(tmp_path / "2", 2), probation=Probation(max_latency_ms=1e-6))
    predictor = load(store, threads=1)
    predictor.predict([image()] * 3)
    assert not predictor.is_rolled_back
    for _ in range(LATENCY_SAMPLES):
        predictor.predict(image())
    assert predictor.is_rolled_back
    assert "its median latency is" in read_state(store).rejected[-1].reason
    assert release_in_use(store) == 1


@pytest.mark.parametrize("after_s", [0, 30], ids=["at its first prediction", "after 30 s"])
def test_a_release_that_crashes_in_each_process_is_rolled_back(tmp_path: Path, after_s: int) -> None:  # D5
    """Real processes, which end by SIGKILL. They use a clock that is ahead by ``after_s``."""
    store = tmp_path / "store"
    add_release(store, write_bundle(tmp_path / "1", 1))
    add_release(store, write_bundle(tmp_path / "2", 2), probation=Probation(tries=2, healthy_s=60.0))
    code = (
        "import os, signal, sys, time\nfrom edgetl.runtime.predictor import load\nfrom tests.device.bundles import image\n"
        "predictor, clock = load(sys.argv[1]), time.monotonic\n"
        "predictor.predict([image()] * 30 * bool(int(sys.argv[2])))\n"
        "predictor._engine._start._clock = lambda: clock() + int(sys.argv[2])\n"
        "predictor.predict([image()] * bool(int(sys.argv[2])))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for _ in range(2):
        assert read_state(store).active is not None
        done = subprocess.run([sys.executable, "-c", code, str(store), str(after_s)], check=False, cwd=Path(__file__).parents[2])
        assert done.returncode == -signal.SIGKILL
    assert release_in_use(store) == 1
    assert "2 processes crashed or were killed during its probation" in read_state(store).rejected[-1].reason
