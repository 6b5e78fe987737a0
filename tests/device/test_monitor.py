"""Monitor: drift, capture, counts and events, without waiting in ``observe``."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetl.core.bundle import open_bundle
from edgetl.core.manifest import Manifest
from edgetl.core.reference import describe_validation
from edgetl.core.results import Prediction
from edgetl.device.monitoring.config import MonitorConfig
from edgetl.device.monitoring.events import EventLog
from edgetl.device.monitoring.monitor import COUNTS, MAX_WAITING, MAX_WAITING_BYTES, Monitor
from edgetl.errors import ConfigError, StorageError
from tests.device.bundles import SIDE, image, write_bundle

RED = Prediction("red", 0.9, (0.9, 0.05, 0.05))
UNSURE = Prediction("red", 0.4, (0.4, 0.3, 0.3))


@pytest.fixture(scope="module")
def old_manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Manifest without a reference."""
    return open_bundle(write_bundle(tmp_path_factory.mktemp("bundles") / "colors", 1)).manifest


@pytest.fixture(scope="module")
def manifest(old_manifest: Manifest) -> Manifest:
    """Manifest whose reference has bright images of all three colors."""
    rng = np.random.default_rng(0)
    predictions = [prediction(rng) for _ in range(200)]
    reference = describe_validation(predictions, rng.normal(0.7, 0.05, (200, 7)).astype(np.float32), old_manifest.decoding)
    return old_manifest.model_copy(update={"reference": reference})


def prediction(rng: np.random.Generator) -> Prediction:
    """Return a random prediction."""
    scores = rng.dirichlet((3, 3, 3))
    return Prediction(("red", "green", "blue")[scores.argmax()], float(scores.max()), tuple(scores.tolist()))


def statistics(rng: np.random.Generator, brightness: float) -> Any:
    """Return image statistics, float32 ``[7]``."""
    return rng.normal((brightness, *[0.7] * 6), 0.05).astype(np.float32)


def photo(number: int) -> bytes:
    """Return an encoded image, different for each number."""
    return image((number % 256, number // 256, 0))


def test_drift_is_an_event_a_count_and_a_reason_to_capture(manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(1)
    config = MonitorConfig(drift=True, capture=tmp_path, capture_interval_s=0, capture_below=0, capture_rate=0)
    with Monitor(config) as monitor:
        monitor.add(manifest)
        for number in range(200):
            inputs = statistics(rng, 0.7 if number < 100 else 0.2)
            monitor.observe(manifest, prediction(rng), inputs=inputs, image=photo(number), source=f"{number}.png")
    counts = monitor.counts()["colors"]
    assert (counts["observed"], counts["drift"], counts["drift_events"], counts["events_failed"]) == (200, 1, 1, 0)
    assert counts["captured_drift"] >= 50 and counts["captured_sample"] == counts["captured_uncertain"] == 0
    log = EventLog(tmp_path / "events.sqlite")
    (event,) = log.events()
    assert (event.kind, event.model, event.release) == ("drift", "colors", 1)
    assert event.detail["changes"][0]["name"] == "image:brightness"
    assert {name: value for (_, _, _, name), value in log.counts().items()}["observed"] == 200
    assert "drift: the last 100 images of colors differ from its validation images: image:brightness" in caplog.text


def test_a_bundle_without_a_reference_is_an_error_with_the_reason(old_manifest: Manifest) -> None:
    with Monitor(MonitorConfig(drift=True)) as monitor:
        with pytest.raises(ConfigError, match=r"exported with 10 validation images \(fewer than 50\)"):
            monitor.add(old_manifest)
        older = old_manifest.model_copy(update={"trained": old_manifest.trained.model_copy(update={"n": 500})})
        with pytest.raises(ConfigError, match="Export the run again"):
            monitor.add(older)


def test_a_later_release_without_a_reference_is_observed_without_drift(old_manifest: Manifest, manifest: Manifest) -> None:
    with Monitor(MonitorConfig(drift=True)) as monitor:
        monitor.add(manifest)
        monitor.observe(old_manifest.model_copy(update={"release": 2}), RED)
    assert monitor.counts()["colors"]["observed"] == 1


def test_observe_returns_while_the_monitor_is_busy_and_counts_what_it_drops(manifest: Manifest, tmp_path: Path) -> None:
    busy, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        busy.set()
        go_on.wait()
        return photo(0)

    with Monitor(MonitorConfig(capture=tmp_path, capture_interval_s=0)) as monitor:
        monitor.observe(manifest, UNSURE, image=slow)
        busy.wait()
        for number in range(MAX_WAITING + 100):
            monitor.observe(manifest, UNSURE, image=photo(number + 1))
        assert monitor.counts()["colors"]["dropped"] == 100
        go_on.set()
    assert monitor.counts()["colors"]["captured_uncertain"] == MAX_WAITING + 1


def test_waiting_images_have_limited_memory(manifest: Manifest, tmp_path: Path) -> None:
    busy, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        busy.set()
        go_on.wait()
        return photo(0)

    with Monitor(MonitorConfig(capture=tmp_path)) as monitor:
        monitor.observe(manifest, UNSURE, image=slow)
        busy.wait()
        for _ in range(5):
            monitor.observe(manifest, UNSURE, image=slow, kept_bytes=MAX_WAITING_BYTES // 3)
        assert monitor.counts()["colors"]["dropped"] == 2
        go_on.set()


def test_an_interval_limits_the_captured_images(manifest: Manifest, tmp_path: Path) -> None:
    with Monitor(MonitorConfig(capture=tmp_path, capture_interval_s=3600)) as monitor:
        for number in range(20):
            monitor.observe(manifest, UNSURE, image=photo(number))
    assert monitor.counts()["colors"]["captured_uncertain"] == 1


def test_a_random_sample_of_certain_images_is_captured(manifest: Manifest, tmp_path: Path) -> None:
    with Monitor(MonitorConfig(capture=tmp_path, capture_interval_s=0, capture_rate=0.5), seed=0) as monitor:
        for number in range(100):
            monitor.observe(manifest, RED, image=photo(number))
    assert 30 < monitor.counts()["colors"]["captured_sample"] < 70


def test_images_are_captured_in_each_form(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(photo(1))
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    with Monitor(MonitorConfig(capture=tmp_path / "kept", capture_interval_s=0)) as monitor:
        for item in (path, photo(2), pixels, Image.fromarray(255 - pixels), lambda: photo(3)):
            monitor.observe(manifest, UNSURE, image=item)
    kept = [file.read_bytes() for file in (tmp_path / "kept/colors/images").iterdir()]
    assert len(kept) == 5 and {photo(1), photo(2), photo(3)} <= set(kept)
    assert all(Image.open(io.BytesIO(data)).size == (SIDE, SIDE) for data in kept)


def test_a_missing_file_is_a_failed_capture(manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Monitor(MonitorConfig(capture=tmp_path, capture_interval_s=0)) as monitor:
        monitor.observe(manifest, UNSURE, image=tmp_path / "moved.jpg")
        monitor.observe(manifest, UNSURE, image=photo(0))  # within the pause after a failure
    counts = monitor.counts()["colors"]
    assert counts["capture_failed"] == 1 and counts["captured_uncertain"] == 0
    assert "an image was not captured: [Errno 2]" in caplog.text


def test_releases_of_a_model_share_a_folder_and_a_budget(manifest: Manifest, tmp_path: Path) -> None:
    with Monitor(MonitorConfig(capture=tmp_path, capture_interval_s=0)) as monitor:
        for release in (1, 2):
            monitor.observe(manifest.model_copy(update={"release": release}), UNSURE, image=photo(release))
    assert monitor.counts()["colors"]["captured_uncertain"] == 2
    assert len(list((tmp_path / "colors/images").iterdir())) == 2


def test_values_that_are_not_finite_are_left_out(manifest: Manifest) -> None:
    with Monitor(MonitorConfig(drift=True)) as monitor:
        for _ in range(100):
            monitor.observe(manifest, Prediction("red", float("nan"), (float("nan"),) * 3), inputs=[float("inf")] * 7)
            monitor.observe(manifest, RED, inputs=np.full((1, 3, SIDE, SIDE), np.nan, np.float32))
    assert monitor.counts()["colors"]["observed"] == 200


def test_counts_are_written_when_the_monitor_closes(manifest: Manifest, tmp_path: Path) -> None:
    for _ in range(2):
        with Monitor(MonitorConfig(drift=True, events=tmp_path / "events.sqlite")) as monitor:
            monitor.observe(manifest, RED)
        assert set(monitor.counts()["colors"]) == set(COUNTS)
    (value,) = EventLog(tmp_path / "events.sqlite").counts().values()
    assert value == 2


def test_an_event_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Choose another path with --events"):
        Monitor(MonitorConfig(drift=True, events=tmp_path / "file" / "events.sqlite"))


def test_events_need_a_purpose() -> None:
    with pytest.raises(ConfigError, match="--events needs --drift or --capture"):
        MonitorConfig(events=Path("events.sqlite"))
