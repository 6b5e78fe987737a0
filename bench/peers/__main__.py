"""Comparison with other tools on the same network and the same images: ``python -m bench.peers --work DIR``.

Each peer is installed in its own environment below the work folder. Each measurement is written to the results file when it is
complete, and a second call continues. The steps: ``install`` (environments), ``models`` (files of the network), ``accuracy``
(before and after int8), ``latency`` (latency, cold start, memory, throughput; the host must be idle), ``servers`` (the same for
HTTP servers), ``size`` (installed size), ``training`` (accuracy and time with 10, 100 and all labels per class), ``table``
(docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import shutil
from datetime import UTC, datetime
from pathlib import Path

from bench.paths import SHARED
from bench.peers.environments import install, size_mb
from bench.peers.peers import CONTENDERS, ENVIRONMENTS, SERVERS, TOOLS
from bench.peers.results import FOLDER, Results
from bench.peers.table import write_page

STEPS = ("install", "models", "accuracy", "latency", "servers", "size", "training", "table")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("steps", nargs="*", choices=[[], *STEPS], default=[], help="[default: all]")
    parser.add_argument(
        "--work",
        type=Path,
        help="folder for environments and files, needed by all steps but table; 12 GB with uv, about 50 GB with pip",
    )
    parser.add_argument("--only", action="append", help="name of an environment; may be repeated [default: all]")
    parser.add_argument("--set", dest="sets", action="append", help="image set of the training; may be repeated [default: all]")
    parser.add_argument("--results", type=Path, default=FOLDER / "peers.jsonl")
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[2] / "docs/benchmarks.md")
    parser.add_argument("--keep", action="store_true", help="keep the environments; they are also kept if steps are named")
    given = parser.parse_args()
    unknown = sorted(set(given.only or ()) - {item.name for item in ENVIRONMENTS})
    if unknown:
        parser.error(f"unknown environment {', '.join(unknown)}; known: {', '.join(item.name for item in ENVIRONMENTS)}")
    steps = given.steps or STEPS
    if steps != ["table"] and given.work is None:
        parser.error("--work is needed: a folder for the environments")
    if steps != ["table"] and not (SHARED / "data").is_dir():
        parser.exit(0, f"nothing was measured: the reference images are not at {SHARED}. Set EDGETL_SHARED to their folder.\n")
    results = Results(given.results)
    for step in steps:
        _run(step, given, results)
    if not given.steps and not given.keep:
        for name in ("environments", "cache"):
            shutil.rmtree(given.work / name, ignore_errors=True)


def _run(step: str, given: argparse.Namespace, results: Results) -> None:
    """Run one step. Its module is imported only now, because ``table`` needs none of the libraries."""
    work = given.work.resolve() if given.work else Path()
    contenders = [item for item in CONTENDERS if not given.only or item.environment in given.only]
    match step:
        case "install" | "size":
            for environment in ENVIRONMENTS:
                if not given.only or environment.name in given.only:
                    record_environment(work, environment.name, results)
        case "models":
            from bench.peers.models import write_models

            write_models(work)
        case "accuracy" | "latency":
            from bench.peers.latency import measure_accuracy, measure_latency

            (measure_latency if step == "latency" else measure_accuracy)(work, results, contenders)
        case "servers":
            from bench.peers.serving import measure_servers

            measure_servers(work, results, [item for item in SERVERS if not given.only or item.environment in given.only])
        case "training":
            from bench.peers.budgets import SETS, measure_training

            tools = [item for item in TOOLS if not given.only or item.environment in given.only]
            measure_training(work, results, tools, given.sets or SETS)
        case _:
            write_page(results, given.page)


def record_environment(work: Path, name: str, results: Results) -> None:
    """Install an environment if it is missing. Write its versions and its size, or the reason why it cannot be installed."""
    environment = next(item for item in ENVIRONMENTS if item.name == name)
    found = install(work, environment)
    if "versions" in found:
        everything, without_gpu = size_mb(work, name)
        found |= {"size_mb": round(everything), "without_gpu_mb": round(without_gpu)}
    results.add("environment", name, date=f"{datetime.now(UTC):%Y-%m-%d}", **found)
    print(f"{name}: {found.get('reason') or found}", flush=True)


if __name__ == "__main__":
    main()
