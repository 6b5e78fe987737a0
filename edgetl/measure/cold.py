"""Cold start of a bundle, measured in a child process of its own."""

from __future__ import annotations

import json
import resource
import sys
import time

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
        "peak_rss_mb": peak_rss_mb(),
    }
    sys.stdout.write(json.dumps(report) + "\n")


def peak_rss_mb() -> float:
    """The largest resident memory of this process, 10^6 bytes.

    Linux keeps it for each address space; ``ru_maxrss`` would also count the parent that this process was forked from.
    """
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6
