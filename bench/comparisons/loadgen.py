"""Agreement of edgetl's generator of queries with MLCommons LoadGen, for one predictor in one run.

``python -m bench.comparisons.loadgen BUNDLE [--variant NAME] [--threads N] [--seconds S] [--rounds N]``. Both generators run the
single-stream and the offline scenario in turn, in alternating order. The table has the medians over the rounds, and the median ratio of the
rounds with its 99 % interval. Use many short rounds. It needs the extra ``loadgen``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgetl.core.bundle import open_bundle
from edgetl.core.system.host import describe_host, versions
from edgetl.core.system.host_state import read_host, record_between
from edgetl.measure.comparison import paired_ratio
from edgetl.measure.config import BenchConfig, Scenario
from edgetl.measure.latency import query_percentiles, warm_up
from edgetl.measure.scenarios.generator import run_scenario
from edgetl.measure.scenarios.measurement import PARTS
from edgetl.measure.scenarios.mlperf import run_loadgen
from edgetl.measure.scenarios.workload import Traffic, Workload, workload
from edgetl.runtime.predictor import MAX_BATCH, load

SCENARIOS: tuple[Scenario, ...] = ("single-stream", "offline")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.comparisons.loadgen", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    predictor = load(bundle, variant=given.variant, threads=given.threads)
    images = [bundle.read(golden.image) for golden in bundle.manifest.golden]
    config = BenchConfig(scenarios=SCENARIOS, min_seconds=given.seconds, min_queries=64)
    print(describe_host())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print("| scenario | part | figure | edgetl | LoadGen | ratio | 99 % |\n|---|---|---|---|---|---|---|")
    before = read_host()
    for scenario in SCENARIOS:
        for part in PARTS:
            rounds = _rounds(scenario, workload(predictor, images, part), config, given.rounds)
            for figure in rounds[0][0]:
                own, loadgen = (np.array([[item[figure]] for item in items]) for items in rounds)
                ratio = paired_ratio(figure, own, loadgen)
                print(
                    f"| {scenario} | {part} | {figure} | {np.median(own):.3f} | {np.median(loadgen):.3f} | {ratio.ratio:.3f} | "
                    f"{ratio.low:.3f} to {ratio.high:.3f} |",
                    flush=True,
                )
    print(f"host: {'; '.join(record_between(before, read_host()).problems()) or 'valid'}")


def _rounds(scenario: Scenario, work: Workload, config: BenchConfig, rounds: int) -> list[list[dict[str, float]]]:
    """Return the figures of each round, of edgetl and of LoadGen."""
    per_query = MAX_BATCH if scenario == "offline" else 1
    expected_ms = warm_up(lambda _: work.run(0, per_query), max_seconds=2.0).median_ms
    runs: list[Callable[[], Traffic]] = [
        lambda: run_scenario(scenario, work, config),
        lambda: run_loadgen(scenario, work, config, expected_ms=expected_ms),
    ]
    found: list[list[dict[str, float]]] = [[], []]
    for number in range(rounds):
        for index in (0, 1) if number % 2 else (1, 0):
            found[index].append(_figures(scenario, runs[index]()))
    return found


def _figures(scenario: Scenario, traffic: Traffic) -> dict[str, float]:
    rate = {"images/s": len(traffic.latencies_ns) * traffic.per_query / traffic.seconds}
    if scenario == "offline":
        return rate
    return {f"p{item.rank:g} ms": item.ms for item in query_percentiles(traffic.latencies_ns) if item.rank in (50, 90) and item.ms} | rate


if __name__ == "__main__":
    main()
