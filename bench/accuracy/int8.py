"""Accuracy, size and latency of int8 against fp32: export each run as four variants and measure them on one thread.

``python -m bench.accuracy.int8 RUN…``. ``edgetl train`` creates the runs. The table names them by their folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from edgetl.core.manifest import Manifest
from edgetl.core.system.host import fingerprint, load_average, versions
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.measure.config import BenchConfig
from edgetl.measure.stages import measure_bundle


def main() -> None:
    """Print one row for each variant of each run."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.int8", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    given = parser.parse_args()
    host = fingerprint()
    print(f"{host['cpu']}, {host['flags']}; load {load_average():.2f}; " + ", ".join(f"{k} {v}" for k, v in versions().items()))
    print("| run | variant | MB | validation (drop) | test | inference, 1 thread | speedup over fp32 | quantization |")
    print("|---|---|---|---|---|---|---|---|")
    for run in given.runs:
        with tempfile.TemporaryDirectory() as work:
            begin = time.perf_counter()
            bundle = export_bundle(run, ExportConfig(allow_missing=True), Path(work) / "bundle")
            seconds = time.perf_counter() - begin
            report = measure_bundle(bundle.path, BenchConfig(threads=1, runs=200, max_seconds=10.0))
            times = {row.variant: row.infer.p50_ms or row.infer.mean_ms for row in report.variants}
            _rows(run.name, bundle.manifest, times)
            print(f"| {run.name} | exported in {seconds:.0f} s | | | | | | |", flush=True)


def _rows(name: str, manifest: Manifest, times: dict[str, float]) -> None:
    for variant in manifest.variants:
        plain = f"{variant.format}-fp32"
        ratio = f"{times[plain] / times[variant.name]:.2f}" if plain in times else ""
        drop = f"{manifest.trained.value - variant.validation.value:+.4f}"
        test = f"{variant.test.value:.4f}" if variant.test else ""
        last = variant.attempts[-1].method if variant.attempts else ""
        print(
            f"| {name} | {variant.name} | {variant.size_bytes / 1e6:.2f} | {variant.validation.value:.4f} ({drop}) | {test} | "
            f"{times[variant.name]:.2f} ms | {ratio} | {last} |"
        )


if __name__ == "__main__":
    main()
