"""Accuracy drop of int8 files that pass the accuracy gate, for runs with 10 labeled images per class.

``python -m bench.accuracy.few_images``. Six runs (three samples of five classes from two data sets) train a linear probe on the ImageNet
MobileNetV2. Each run is exported twice: with a gate that uses the few labeled validation images only (``labels``), and with agreement on
unlabeled images (``agreement``). The drop is measured on unseen images, as the difference between the fp32 and the int8 files.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from bench.paths import SHARED
from edgetl.core.bundle import Bundle
from edgetl.core.manifest import Variant
from edgetl.core.metrics import paired_drop
from edgetl.core.progress import Progress
from edgetl.core.system.host import available_cores, fingerprint, versions
from edgetl.data.folder import scan
from edgetl.data.loading import PixelSet, labels_of, stratified
from edgetl.errors import AccuracyGateError
from edgetl.export import package
from edgetl.export.config import ExportConfig
from edgetl.export.context import ExportContext, prepare
from edgetl.export.gate.agreement import outputs_of
from edgetl.export.package import export_bundle
from edgetl.runtime.engine import load_engine
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.train import train

DATA_SETS, CLASSES, IMAGES, SEEDS = ("trashnet", "sign-digits"), 5, 10, (0, 1, 2)
MOST_UNSEEN = 1000


def main() -> None:
    """Print one row for each exported int8 variant."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.few_images", description=__doc__)
    parser.add_argument("--cpu", choices=("here", "any"), default="any", help="option of `edgetl export`; any: 7-bit weights")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--data", default=",".join(DATA_SETS))
    parser.add_argument("--keep", type=Path, help="folder for the runs; existing runs are reused")
    given = parser.parse_args()
    host = fingerprint()
    print(f"{host['cpu']}, {host['flags']}; --cpu {given.cpu}; " + ", ".join(f"{k} {v}" for k, v in versions().items()))
    columns = "images", "gate", "variant", "accuracy of fp32", "drop (95 % interval)", "changed predictions", "attempts", "export time"
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    drops: dict[str, list[float]] = {"labels": [], "agreement": []}
    with tempfile.TemporaryDirectory() as name:
        root = given.keep or Path(name)
        for data in given.data.split(","):
            for seed in map(int, given.seeds.split(",")):
                run = _train(SHARED / "data" / data, root / f"{data}-{seed}", seed)
                unseen = _unseen(run, root / f"{data}-{seed}" / "unseen")
                for gate in drops:
                    drops[gate] += _export(run, unseen, gate, given.cpu, f"{data} {seed}")
    for gate, found in drops.items():
        if found:
            print(f"gate with {gate}: {len(found)} int8 files passed; accuracy drop: mean {np.mean(found):.4f}, worst {max(found):.4f}")


def _train(data: Path, folder: Path, seed: int) -> Run:
    """Train a linear probe on ``IMAGES`` images of each of ``CLASSES`` classes. The other images are copied to the folder ``unseen``."""
    if (folder / "run").is_dir():
        return open_run(folder / "run")
    rng = random.Random(seed)
    for label in sorted(rng.sample(sorted(path.name for path in data.iterdir() if path.is_dir()), CLASSES)):
        files = sorted((data / label).iterdir())
        rng.shuffle(files)
        for part, chosen in (("images", files[:IMAGES]), ("unseen", files[IMAGES:])):
            (folder / part / label).mkdir(parents=True)
            for file in chosen:
                shutil.copyfile(file, folder / part / label / file.name)
    backbone = f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"
    return train(folder / "images", TrainConfig.from_options(backbone=backbone, strategy="probe", seed=seed), folder / "run")


def _unseen(run: Run, folder: Path) -> PixelSet:
    return PixelSet(stratified(scan(folder, known_labels=run.record.labels).samples, MOST_UNSEEN), run.record.preprocess)


def _labels_only(run: Run, config: ExportConfig, work: Path, progress: Progress) -> ExportContext:
    """Prepare an export with a gate that uses the labeled validation images only."""
    context = prepare(run, config, work, progress)
    context.gate = replace(context.gate, more=None)
    return context


def _export(run: Run, unseen: PixelSet, gate: str, cpu: str, name: str) -> list[float]:
    """Export both int8 variants and print a row for each. Return the accuracy drops of the variants that passed."""
    config = ExportConfig.model_validate({"precisions": ("fp32", "int8"), "allow_missing": True, "cpu": cpu})
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(package, "prepare", _labels_only if gate == "labels" else prepare):
        begin = time.perf_counter()
        try:
            bundle = export_bundle(run.path, config, Path(folder) / "bundle")
        except AccuracyGateError as error:
            print(f"| {name} | {gate} | none | | {error} | | | |", flush=True)
            return []
        seconds = time.perf_counter() - begin
        for item in bundle.manifest.rejected:
            print(f"| {name} | {gate} | {item.name} rejected | | {item.reason} | | {len(item.attempts)} | {seconds:.0f} s |", flush=True)
        trained = _predictions(bundle, "onnx-fp32", unseen)
        passed = [variant for variant in bundle.manifest.variants if variant.attempts]
        return [_row(bundle, variant, unseen, trained, f"{name} | {gate}", seconds) for variant in passed]


def _predictions(bundle: Bundle, name: str, images: PixelSet) -> NDArray[np.intp]:
    variant = bundle.variant(name)
    engine = load_engine(variant.format, [bundle.read(file) for file in variant.files], threads=available_cores())
    return outputs_of(engine.run, images).argmax(axis=1)


def _row(bundle: Bundle, variant: Variant, unseen: PixelSet, trained: NDArray[np.intp], prefix: str, seconds: float) -> float:
    labels, found = labels_of(unseen.samples), _predictions(bundle, variant.name, unseen)
    drop = paired_drop(trained == labels, found == labels)
    print(
        f"| {prefix} | {variant.name} | {(trained == labels).mean():.4f}, n = {drop.n} | {drop.value:+.4f} "
        f"({drop.low:+.4f} to {drop.high:+.4f}) | {(found != trained).mean():.3f} | {len(variant.attempts)} | {seconds:.0f} s |",
        flush=True,
    )
    return drop.value


if __name__ == "__main__":
    main()
