"""Cold start of a bundle, measured in a child process of its own."""

from __future__ import annotations

import json
import sys
import time

from edgetl.core.files.platforms import peak_memory_bytes
from edgetl.runtime.predictor import load


def report_cold_start(bundle: str, variant: str, image: str, threads: str, started: str) -> None:
    """Child process: load, predict once, and write the times as JSON; ``started`` is the parent's clock (seconds) when it started this."""
    begin = time.perf_counter()
    predictor = load(bundle, variant=variant, threads=int(threads))
    loaded = time.perf_counter()
    predictor.predict(image)
    report = {
        "load_ms": (loaded - begin) * 1e3,
        "first_prediction_ms": (time.time() - float(started)) * 1e3,
        "peak_rss_mb": peak_memory_bytes() / 1e6,
    }
    sys.stdout.write(json.dumps(report) + "\n")
