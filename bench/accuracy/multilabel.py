"""Multi-label classification: mean average precision on blood-cell photographs (bccd, three labels), by strategy.

``python -m bench.accuracy.multilabel``. Each seed creates another 70/15/15 split. The table has mean and standard deviation over the seeds,
on test images. The images and the ImageNet MobileNetV2 are in the reference folder (``EDGETL_SHARED``, default ``../shared``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.paths import SHARED
from edgetl.core.results import Evaluation
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train

STRATEGIES = ("probe", "partial", "full")
SEEDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.multilabel", description=__doc__)
    parser.add_argument("--strategy", choices=STRATEGIES, action="append", help="may be repeated [default: all]")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--height", type=int, default=224)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--crop-pct", type=float, help="ratio of the resized image that is kept [default: the backbone's]")
    parser.add_argument("--loss", choices=("bce", "asymmetric"), default="bce")
    parser.add_argument("--augmented-views", type=int, default=4, help="augmented views of each image for fitting the head")
    given = parser.parse_args()
    data = SHARED / "data/bccd"
    options = {"input_size": (given.height, given.width), "crop_pct": given.crop_pct, "multilabel_loss": given.loss}
    options["augmented_views"] = given.augmented_views
    print(f"bccd, {given.height} x {given.width}, crop {given.crop_pct or 'of the backbone'}, {given.loss}, {given.seeds} seeds")
    columns = ("strategy", "mAP, test", "RBC", "WBC", "Platelets", "macro F1", "all labels correct", "s per run")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for strategy in given.strategy or STRATEGIES:
        begin = time.monotonic()
        tests = [_test(data, {**options, "strategy": strategy, "seed": seed}) for seed in range(given.seeds)]
        cells = [_cell([item.score.value for item in tests])]
        cells += [_cell([precisions(item)[index] for item in tests]) for index in range(3)]
        cells += [_cell([item.macro_f1 for item in tests]), _cell([item.accuracy.value for item in tests])]
        print(f"| {strategy} | {' | '.join(cells)} | {(time.monotonic() - begin) / given.seeds:.0f} |", flush=True)


def _test(data: Path, options: dict[str, object]) -> Evaluation:
    """Train a run and return its metrics on the test images."""
    backbone = {"backbone": "mobilenetv2_100.imagenet", "weights_dir": str(SHARED / "weights"), "labels": str(data / "multilabel.csv")}
    config = TrainConfig.from_options(**{**backbone, **options})
    with tempfile.TemporaryDirectory() as work:
        test = train(data / "images", config, Path(work) / "run").record.test
    assert test is not None
    return test


def precisions(test: Evaluation) -> list[float]:
    """Return the average precision of each label; NaN if no test image has the label."""
    assert test.multi_label is not None
    return [float("nan") if value is None else value for value in test.multi_label.average_precision]


def _cell(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({np.std(values):.3f})"


if __name__ == "__main__":
    main()
