"""``edgetl serve --drift --capture``: metrics, captured requests, start without a reference."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import httpx
import numpy as np
from PIL import Image, ImageOps

from edgetl.core.bundle import Bundle
from edgetl.device.monitoring.events import EventLog
from edgetl.train.artifacts.run import Run
from tests.command import edgetl
from tests.serve.serving import free_port, serving, until


def inverted(path: Path, out: Path) -> bytes:
    """Return an encoded image with inverted colors."""
    ImageOps.invert(Image.open(path).convert("RGB")).save(out, "PNG")
    return out.read_bytes()


def test_drifted_requests_are_counted_captured_and_recorded(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "captured"
    options = ("--drift", "--capture", str(folder), "--capture-interval-s", "0", "--capture-rate", "0", "--capture-below", "0")
    samples = run.samples("test")
    with serving(bundle.path, options=options) as served, httpx.Client(base_url=served.url, timeout=None) as client:
        assert served.metric("edgetl_monitor_observed_total") == 0
        tensor = {"name": "input", "datatype": "FP32", "shape": [2, 3, 48, 48], "data": np.zeros(2 * 3 * 48 * 48).tolist()}
        assert client.post("/v2/models/digits/infer", json={"inputs": [tensor]}).status_code == 200
        sent = [inverted(sample.path, tmp_path / "image.png") for sample in samples[:60]]
        for data in sent[:58]:
            assert client.post("/predict", content=data).status_code == 200
        for data in sent[58:]:
            assert client.post("/predict", files={"image": data}).status_code == 200
        until(lambda: served.metric("edgetl_monitor_observed_total") == 62)
        assert served.metric("edgetl_drift") == served.metric("edgetl_drift_events_total") == 1
        until(lambda: served.metric('edgetl_captured_total{model="digits",reason="drift"') >= 10)
        assert served.metric("edgetl_monitor_dropped_total") == served.metric("edgetl_capture_failed_total") == 0
        assert "drift: the last 50 images of digits differ from its validation images" in served.log()
    with open(folder / "digits/labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["reason"] for row in rows} == {"drift"} and {row["label"] for row in rows} == {""}
    kept = {path.read_bytes() for path in (folder / "digits/images").iterdir()}
    assert len(kept) == len(rows) >= 10 and kept <= set(sent) and kept & set(sent[58:])
    log = EventLog(folder / "events.sqlite")
    assert [event.kind for event in log.events()] == ["drift"]
    assert {name: value for (*_, name), value in log.counts().items()}["observed"] == 62


def test_a_server_does_not_start_with_drift_for_a_bundle_without_a_reference(bundle: Bundle, tmp_path: Path) -> None:
    copied = tmp_path / "old"
    copied.mkdir()
    for file in bundle.manifest.all_files():
        (copied / file.path).parent.mkdir(parents=True, exist_ok=True)
        (copied / file.path).write_bytes(bundle.read(file))
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "reference": None}) + "\n")
    done = edgetl("serve", copied, "--port", free_port(), "--drift")
    assert done.returncode == 3 and "has no monitoring reference. Export the run again" in done.stderr
