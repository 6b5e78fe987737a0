"""Fused and two-step resize: time for camera images, largest difference, and accuracy of one head with both.

``python -m bench.comparisons.resize [--run RUN] [--bundle BUNDLE]``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from bench.paths import SHARED
from bench.timing import in_turn
from bench.trashnet import run_and_bundle
from edgetl.core.metrics import evaluate
from edgetl.core.preprocess import to_pixels
from edgetl.data.loading import truth_of
from edgetl.runtime.evaluation import compute_outputs
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.run import open_run


def main() -> None:
    """Print one line for each orientation, and the accuracies."""
    with run_and_bundle("bench.comparisons.resize", __doc__) as (run, bundle):
        compare(run, bundle)


def compare(run_path: Path, bundle: Path) -> None:
    run = open_run(run_path)
    fused = run.record.preprocess
    exact = fused.model_copy(update={"resize": "two-step"})
    photos = [Image.open(path).convert("RGB") for path in sorted((SHARED / "data/bccd/images").glob("*.jpg"))[:40]]
    sideways = [photo.transpose(Image.Transpose.ROTATE_90) for photo in photos]
    for name, images in (("640 x 480", photos), ("480 x 640", sideways)):
        times = in_turn({"fused": lambda p: to_pixels(p, fused), "two-step": lambda p: to_pixels(p, exact)}, images, rounds=400)
        pairs = [(np.asarray(to_pixels(p, fused)).astype(int), np.asarray(to_pixels(p, exact)).astype(int)) for p in images]
        worst = max(int(np.abs(one - two).max()) for one, two in pairs)
        ratio = times["fused"] / times["two-step"]
        shown = f"fused {times['fused']:.2f} ms, two-step {times['two-step']:.2f} ms"
        print(f"{name}: {shown} (ratio {ratio:.2f}), largest difference {worst} gray levels of 255")
    predictor = load(bundle, variant="onnx-fp32")
    samples = run.samples("test")
    for name, spec in (("fused", fused), ("two-step", exact)):
        outputs = compute_outputs(predictor.logits, samples, spec)
        accuracy = evaluate(predictor.decoding, truth_of(samples), outputs).accuracy
        print(f"{name}: accuracy {accuracy.value:.4f} on {accuracy.n} test images")


if __name__ == "__main__":
    main()
