"""Run and bundle of a MobileNetV2 on the photographs of trashnet, for several commands of this package."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.paths import SHARED
from edgetl.core.system.host import describe_host, versions
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train


@contextmanager
def run_and_bundle(module: str, description: str | None) -> Iterator[tuple[Path, Path]]:
    """Parse the options ``--run`` and ``--bundle``, print the host, and yield the folders of a run and its bundle.

    A missing run is trained, and a missing bundle is exported, in a temporary folder. Without the reference images the program ends.

    Args:
        module: name of the command's module, for ``--help``.
        description: description of the command.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--run", type=Path, help="run of a MobileNetV2 on trashnet [default: train one]")
    parser.add_argument("--bundle", type=Path, help="bundle of the run [default: export one]")
    given = parser.parse_args()
    if not (SHARED / "data").is_dir():
        parser.exit(2, f"Nothing was measured: the reference images are not at {SHARED}. Set EDGETL_SHARED to their folder.\n")
    print(describe_host())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    with tempfile.TemporaryDirectory() as work:
        run = given.run or _train(Path(work))
        yield run, given.bundle or export_bundle(run, ExportConfig(precisions=("fp32", "int8")), Path(work) / "bundle").path


def _train(work: Path) -> Path:
    backbone = f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"
    return train(SHARED / "data/trashnet", TrainConfig.from_options(backbone=backbone), work / "run").path
