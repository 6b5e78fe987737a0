"""Diagnosis of a transfer: a positive and a negative case, and predictions of learning curves.

``python -m bench.accuracy.diagnosis``. The negative case are hand signs whose pixels are in a random order, the same for all images. A
convolutional network has no use for its pretraining then, because neighboring pixels are unrelated. The learning curves of five seeds
predict the accuracy with all labels from the points up to half of them. The domain distance is measured between random halves of one
folder, where each detected shift is a false alarm, and between folders. ``--fine-tune`` trains networks in place of probes.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bench.paths import SHARED
from edgetl.core.system.host import describe_host
from edgetl.train.config.diagnosis.curve import CurveConfig
from edgetl.train.config.diagnosis.distance import DistanceConfig
from edgetl.train.config.diagnosis.transfer import TransferConfig
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.diagnosis.curve import learning_curve
from edgetl.train.workflows.diagnosis.distance import distance
from edgetl.train.workflows.diagnosis.transfer import diagnose

BACKBONE = f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"
PERMUTED_SIDE = 64
PARTS = ("transfer", "curve", "distance")


def main() -> None:
    """Print one table for each part."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.diagnosis", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="tables to print")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--side", type=int, default=96, help="input height and width of the photographs, px")
    parser.add_argument("--fine-tune", action="store_true", help="compare trained networks in the first table")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of these trainings")
    given = parser.parse_args()
    print(f"{describe_host()}; ImageNet MobileNetV2")
    with tempfile.TemporaryDirectory() as work:
        if "transfer" in given.parts:
            _print_transfer(Path(work), given.side, given.epochs if given.fine_tune else None)
        if "curve" in given.parts:
            _print_curves(given.side, given.seeds)
        if "distance" in given.parts:
            _print_distances(Path(work), given.seeds)


def _print_transfer(work: Path, side: int, epochs: int | None) -> None:
    cases = {"trashnet": (SHARED / "data/trashnet", side), "sign-digits, permuted pixels": (permuted(work / "permuted"), PERMUTED_SIDE)}
    print("| images | transfer | accuracies | differences (95 % interval) | s |\n|---|---|---|---|---|")
    for name, (data, size) in cases.items():
        config = TrainConfig.from_options(backbone=BACKBONE, input_size=(size, size), crop_pct=1.0)
        if epochs:
            config = config.with_options(strategy="full", epochs=epochs)
        report = diagnose(data, config, TransferConfig(fine_tune=bool(epochs)))
        models = ", ".join(f"{arm.name} {arm.accuracy.value:.3f}" for arm in report.arms)
        differences = "; ".join(item.describe() for item in report.comparisons)
        print(f"| {name} | {report.transfer} | {models} | {differences} | {report.seconds:.0f} |", flush=True)


def _print_curves(side: int, seeds: int) -> None:
    print("| seed | predicted from 50 % of the labels | measured | inside | data-equivalence factor | s |\n|---|---|---|---|---|---|")
    inside = 0
    for seed in range(seeds):
        config = TrainConfig.from_options(backbone=BACKBONE, input_size=(side, side), seed=seed)
        report = learning_curve(SHARED / "data/trashnet", config, CurveConfig())
        check, factor = report.backtest, report.equivalence
        inside += check.inside
        shown = f"{check.forecast.accuracy:.3f} ({check.forecast.low:.3f} to {check.forecast.high:.3f})"
        replaced = f"{factor.bound} {factor.factor:.1f}"
        print(f"| {seed} | {shown} | {check.measured:.3f} | {check.inside} | {replaced} | {report.seconds:.0f} |", flush=True)
    print(f"inside the interval: {inside} of {seeds}")


def _print_distances(work: Path, seeds: int) -> None:
    print("| folders | shifts | proxy-A distance | p of MMD | p of scores | s |\n|---|---|---|---|---|---|")
    photo = SHARED / "data/pacs/photo"
    cases = [("halves of trashnet", *halves(SHARED / "data/trashnet", work / f"halves-{seed}", seed)) for seed in range(seeds)]
    cases += [(f"photo, {name}", photo, SHARED / f"data/pacs/{name}") for name in ("cartoon", "sketch")]
    for name, a, b in cases:
        report = distance(a, b, TrainConfig(), DistanceConfig())
        p = report.scores.p if report.scores else float("nan")
        cells = f"{report.shift} | {report.domains.proxy_a:.2f} | {report.mmd.p:.3f} | {p:.2g} | {report.seconds:.0f}"
        print(f"| {name} | {cells} |", flush=True)


def permuted(folder: Path) -> Path:
    """Write the images of sign-digits with their pixels in a random order, the same for all images."""
    order = np.random.default_rng(0).permutation(PERMUTED_SIDE**2)
    for path in _images(SHARED / "data/sign-digits"):
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB").resize((PERMUTED_SIDE, PERMUTED_SIDE))
        pixels = np.asarray(image).reshape(-1, 3)[order].reshape(PERMUTED_SIDE, PERMUTED_SIDE, 3)
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / path.parent.name / f"{path.stem}.png")
    return folder


def halves(data: Path, folder: Path, seed: int) -> tuple[Path, Path]:
    """Link the images of ``data`` into two random halves."""
    files = list(_images(data))
    random.Random(seed).shuffle(files)
    for index, path in enumerate(files):
        target = folder / "ab"[index % 2] / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())
    return folder / "a", folder / "b"


def _images(data: Path) -> list[Path]:
    return sorted(path for path in data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


if __name__ == "__main__":
    main()
