"""Accuracy of the installed backbone ``lite0`` on trashnet: default training for several seeds, and int8 export of the first run.

``python -m bench.accuracy.lite0`` needs the extra ``lite0`` and no access to a hub. Runs that are in ``--work`` are not trained again,
and an interrupted training continues.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from bench.paths import SHARED
from edgetl.core.system.host import describe_host, versions
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.train.artifacts.run import open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train


def main() -> None:
    """Print the test accuracy of each seed, and a row for each variant of the first run."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.lite0", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs and the bundle")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategy", default="auto")
    given = parser.parse_args()
    print(describe_host(), ", ".join(f"{name} {version}" for name, version in versions().items()), sep="\n")
    found = []
    for seed in range(given.seeds):
        folder = given.work / f"{given.strategy}-{seed}"
        if not folder.exists():
            config = TrainConfig.from_options(backbone="lite0", strategy=given.strategy, seed=seed)
            train(SHARED / "data/trashnet", config, folder, resume=True)
        record = open_run(folder).record
        assert record.test is not None
        found.append(record.test.accuracy.value)
        validation = record.validation.accuracy.value
        print(f"seed {seed}: {record.plan.strategy}, validation {validation:.4f}, test {found[-1]:.4f}, {record.seconds:.0f} s", flush=True)
    print(f"test accuracy, mean of {len(found)} seeds: {statistics.mean(found):.4f}, lowest {min(found):.4f}", flush=True)
    bundle = export_bundle(given.work / f"{given.strategy}-0", ExportConfig(), given.work / "bundle", overwrite=True)
    for variant in bundle.manifest.variants:
        test = f"{variant.test.value:.4f}" if variant.test else ""
        print(f"{variant.name}: {variant.size_bytes / 1e6:.2f} MB, validation {variant.validation.value:.4f}, test {test}")


if __name__ == "__main__":
    main()
