"""The child process of a cold-start measurement: ``python -m edgetl.measure.cold BUNDLE VARIANT IMAGE THREADS STARTED``."""

from __future__ import annotations

import json
import resource
import sys
import time

from edgetl.runtime.predictor import load


def main(bundle: str, variant: str, image: str, threads: str, started: str) -> dict[str, float]:
    """Load and predict once; ``started`` is the parent's clock (seconds) when it started this process."""
    begin = time.perf_counter()
    predictor = load(bundle, variant=variant, threads=int(threads))
    loaded = time.perf_counter()
    predictor.predict(image)
    return {
        "load_ms": (loaded - begin) * 1e3,
        "first_prediction_ms": (time.time() - float(started)) * 1e3,
        "peak_rss_mb": peak_rss_mb(),
    }


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


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])) + "\n")
