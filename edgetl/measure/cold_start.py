"""Cold start of a bundle, measured in a separate process."""

from __future__ import annotations

import json
import sys
import time

from edgetl.core.bundle import open_bundle
from edgetl.core.files.platforms import peak_memory_bytes
from edgetl.core.system.execution import Choice
from edgetl.runtime.predictor import load_variant


def report_cold_start(bundle: str, choice: str, image: str, started: str) -> None:
    """Run in the child process: load the bundle, predict once, and write the times as JSON.

    Args:
        bundle: folder of the bundle.
        choice: ``Choice`` as JSON.
        image: image file.
        started: time at which the parent started this process (``time.time``, seconds).
    """
    begin = time.perf_counter()
    opened, chosen = open_bundle(bundle), Choice.model_validate_json(choice)
    predictor = load_variant(opened, opened.variant(chosen.variant), threads=chosen.threads, setting=chosen.setting)
    loaded = time.perf_counter()
    predictor.predict(image)
    report = {
        "load_ms": (loaded - begin) * 1e3,
        "first_prediction_ms": (time.time() - float(started)) * 1e3,
        "peak_rss_mb": peak_memory_bytes() / 1e6,
    }
    sys.stdout.write(json.dumps(report) + "\n")
