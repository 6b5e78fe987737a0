"""Benchmark suites: ``python -m bench [preprocess|path|footprint|ecosystem …]``. Without an argument, all suites run.

Ratios compare measurements of one run on one host, with the contenders in turn within each round. The photographs and weights are in the
reference folder (``EDGETL_SHARED``, default ``../shared``). A run and a bundle are created first, unless ``--run`` and ``--bundle`` name
them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench import ecosystem, footprint, path, preprocess
from bench.paths import SHARED
from edgetl.core.system.host import describe_host, versions
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train

SUITES = {"preprocess": preprocess.main, "path": path.main, "footprint": footprint.main, "ecosystem": ecosystem.main}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("suites", nargs="*", choices=[[], *SUITES], default=[])
    parser.add_argument("--run", type=Path, help="run of a MobileNetV2 on trashnet [default: train one]")
    parser.add_argument("--bundle", type=Path, help="bundle of the run [default: export one]")
    given = parser.parse_args()
    if not (SHARED / "data").is_dir():
        parser.exit(0, f"nothing was measured: the reference images are not at {SHARED}. Set EDGETL_SHARED to their folder.\n")
    print(describe_host())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    with tempfile.TemporaryDirectory() as work:
        run = given.run or _train(Path(work))
        bundle = given.bundle or export_bundle(run, ExportConfig(precisions=("fp32", "int8")), Path(work) / "bundle").path
        for name in given.suites or SUITES:
            print(f"\n## {name}")
            SUITES[name](run, bundle, SHARED)


def _train(work: Path) -> Path:
    backbone = f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"
    return train(SHARED / "data/trashnet", TrainConfig.from_options(backbone=backbone), work / "run").path


if __name__ == "__main__":
    main()
