"""Calibration of an over-confident run: calibration error, accuracy, and rejection of unknown images, on test images.

``python -m bench.accuracy.calibration [--run RUN]``. A MobileNetV2 is fine-tuned on trashnet (758 images, 96 px) with a high learning rate,
and without label smoothing, weight averaging and augmentation. Its best validation is after 20 epochs, when it has memorized the training
images. The run is calibrated, exported and served, and every test image is sent to ``POST /predict``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from bench.paths import SHARED
from bench.server.throughput import end, start
from edgetl.cli.tables import with_interval
from edgetl.core.metrics import evaluate_scores, expected_calibration_error, reliability_bins
from edgetl.core.results import wilson
from edgetl.core.system.host import describe_host
from edgetl.data.loading import truth_of
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.options import CalibrationConfig, TrainConfig
from edgetl.train.workflows.runs.calibrate import calibrate_run
from edgetl.train.workflows.train import train

RECIPE = """
strategy = "partial"
unfreeze = "0.2"
epochs = 400
lr = 0.002
backbone_lr = 0.002
lr_decay = 1.0
weight_decay = 0.0
label_smoothing = 0.0
ema_decay = 0.0
augment = "none"
mixup = 0.0
warmup_fraction = 0.01
fit_head = false
"""
TARGETS = (0.85, 0.9, 0.95)
PORT = 8093


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.calibration", description=__doc__)
    parser.add_argument("--run", type=Path, help="over-confident run [default: train one]")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(describe_host())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        original = open_run(given.run) if given.run else _train(work, given.seed)
        shutil.copytree(original.path, work / "calibrated")
        run = calibrate_run(work / "calibrated")
        _show_calibration(original, run)
        print("\n| target precision | threshold | coverage, validation | precision, validation | coverage, test | precision, test |")
        print("|---" * 6 + "|")
        for target in TARGETS:
            run = calibrate_run(work / "calibrated", CalibrationConfig(calibrate=True, target_precision=target))
            _show_rejection(target, run)
        _show_server(run, work)


def _train(work: Path, seed: int) -> Run:
    (work / "overfit.toml").write_text(RECIPE)
    config = TrainConfig.from_options(
        backbone=f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet",
        recipe=str(work / "overfit.toml"),
        patience=1,
        input_size=(96, 96),
        val=0.35,
        test=0.35,
        cache_views=1,
        seed=seed,
    )
    return train(SHARED / "data/trashnet", config, work / "original")


def _show_calibration(original: Run, run: Run) -> None:
    """Print the figures of both splits before and after the calibration."""
    print(f"\ntemperature {run.record.decision_rule.temperature:.3f}\n")
    print("| images | n | accuracy before | after | ECE before | after | log loss before | after |\n" + "|---" * 8 + "|")
    for name, before, after in (
        ("validation", original.record.validation, run.record.validation),
        ("test", original.record.test, run.record.test),
    ):
        assert before is not None and after is not None and before.reliability is not None and after.reliability is not None
        pairs = [
            (before.accuracy.value, after.accuracy.value),
            (before.reliability.ece, after.reliability.ece),
            (before.reliability.nll, after.reliability.nll),
        ]
        print(f"| {name} | {after.accuracy.n} | " + " | ".join(f"{old:.4f} | {new:.4f}" for old, new in pairs) + " |")


def _show_rejection(target: float, run: Run) -> None:
    figures = [item for found in (run.record.validation, run.record.test) if found for item in [found.rejection] if item]
    if not figures:
        assert run.record.calibration is not None
        print(f"| {target:g} | none: {' '.join(run.record.calibration.notices)} |")
        return
    cells = [with_interval(value) for item in figures for value in (item.coverage, item.precision)]
    print(f"| {target:g} | {figures[0].below:.4f} | {' | '.join(cells)} |")


def _show_server(run: Run, work: Path) -> None:
    """Print the figures of the scores that a server returns for the test images."""
    bundle = export_bundle(run.path, ExportConfig(formats=("onnx",), precisions=("fp32",)), work / "bundle")
    samples = run.samples("test")
    options = ["serve", str(bundle.path), "--port", str(PORT), "--no-access-log"]
    server = start([sys.executable, "-m", "edgetl.cli.app", *options], PORT, "/v2/health/ready")
    try:
        replies = [_post(sample.path.read_bytes()) for sample in samples]
    finally:
        end(server)
    scores, truth = np.array([list(reply["scores"].values()) for reply in replies]), truth_of(samples)
    right = scores.argmax(axis=1) == truth
    known = np.array([reply["label"] is not None for reply in replies])
    ece = expected_calibration_error(reliability_bins(scores.max(axis=1), right))
    logits = np.log(np.maximum(scores, 1e-30)).astype(np.float32)
    plain = evaluate_scores(run.record.decoding.uncalibrated, truth, logits * np.float32(run.record.decision_rule.temperature))
    print(f"\nserver, {len(samples)} test images: ECE {ece:.4f} (of the same scores without the temperature: {plain.ece:.4f}); ", end="")
    print(f"coverage {with_interval(wilson(int(known.sum()), len(known)))}, ", end="")
    print(f"precision {with_interval(wilson(int(right[known].sum()), int(known.sum())))}")


def _post(image: bytes) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/predict", image)
    with urllib.request.urlopen(request, timeout=60) as response:
        result: dict[str, Any] = json.load(response)
    return result


if __name__ == "__main__":
    main()
