"""Test accuracy of ``edgetl train`` and of fastai's ``fine_tune`` with 50 labeled images per class, both with their defaults.

``python -m bench.accuracy.few_labels_peers --work FOLDER``. FOLDER has the environments of ``bench.peers`` (``python -m bench.peers install
--work FOLDER``). Images, network, jobs and test images are those of its step ``training``: 128 pixels, and a quarter of each class for the
test. Results are kept in FOLDER, and a second call continues.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.accuracy.few_labels import SETS
from bench.peers.budgets import job_key, measure_training
from bench.peers.peers import TOOLS
from bench.peers.results import Results


def main() -> None:
    """Run the missing trainings, and print one row for each tool."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.few_labels_peers", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the environments")
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tools", default="edgetl,fastai", help="titles of bench.peers, separated by commas")
    parser.add_argument("--sets", default=",".join(SETS))
    given = parser.parse_args()
    sets = given.sets.split(",")
    results, count = Results(given.work / "few_labels.jsonl"), given.per_class
    tools = [replace(tool, budgets=(count,)) for tool in TOOLS if tool.title in given.tools.split(",")]
    measure_training(given.work.resolve(), results, tools, sets, budgets=(count,), seeds=range(given.seeds))
    print(f"| tool | {' | '.join(sets)} | mean | CPU s |\n" + "|---" * (len(sets) + 3) + "|")
    for tool in tools:
        rows = [[results.get("training", job_key(tool, name, count, seed)) or {} for seed in range(given.seeds)] for name in sets]
        found = [float(np.mean([row["accuracy"] for row in part])) for part in rows]
        spent = np.mean([row["cpu_s"] for part in rows for row in part])
        print(f"| {tool.title} | {' | '.join(f'{value:.4f}' for value in (*found, np.mean(found)))} | {spent:.0f} |")


if __name__ == "__main__":
    main()
