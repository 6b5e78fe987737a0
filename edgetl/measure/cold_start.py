"""Cold start of a bundle, measured in a separate process."""

from __future__ import annotations

import json
import sys
import time

from edgetl.core.files.platforms import peak_memory_bytes
from edgetl.runtime.predictor import load


def report_cold_start(bundle: str, variant: str, image: str, threads: str, started: str) -> None:
    """Run in the child process: load the bundle, predict once, and write the times as JSON.

    ``started`` is the time at which the parent started this process (``time.time``, seconds).
    """
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
