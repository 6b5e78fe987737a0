"""Scaled JPEG decoding: pixel difference and accuracy, by the ratio of the decoded to the resized image.

Run ``python -m bench.accuracy.scaled_decode``.

A linear head on a MobileNetV2 is fitted on half of trashnet with full decoding, and evaluated on the other half with both, and the reverse.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import openvino as ov
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from bench.paths import SHARED
from edgetl.core.images.decode import load_image
from edgetl.core.preprocess import PreprocessSpec, normalize, to_pixels
from edgetl.core.system.host import available_cores, describe_host

BATCH = 32
CAMERA_SIDE = 480
# Source of the images, side of the input, divisor of the decoder.
CASES = (("camera", 224, 2), ("original", 120, 2), ("original", 112, 2), ("original", 96, 2), ("original", 64, 2), ("original", 64, 4))


def main() -> None:
    print(describe_host())
    files = sorted((SHARED / "data/trashnet").glob("*/*.jpg"))
    classes = sorted({path.parent.name for path in files})
    labels = np.array([classes.index(path.parent.name) for path in files])
    model = timm.create_model(f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet", pretrained=True, num_classes=0).eval()
    images = {"original": [path.read_bytes() for path in files]}
    with ThreadPoolExecutor(available_cores()) as pool:
        images["camera"] = list(pool.map(_enlarged, images["original"]))
        for source, side, factor in CASES:
            spec = PreprocessSpec(input_size=(side, side), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
            full, scaled = (np.stack(list(pool.map(partial(_pixels, spec=spec, factor=each), images[source]))) for each in (1, factor))
            run = _compiled(model, side)
            accuracies, agreement = _compare(_features(run, full, spec), _features(run, scaled, spec), labels)
            ratio = min(load_image(images[source][0]).size) / factor / int(side / spec.crop_pct)
            difference = float(np.abs(full.astype(np.int16) - scaled).mean())
            print(
                f"{source}, input {side}, scale 1/{factor}: decoded : resized {ratio:.2f}, pixels differ by {difference:.2f} of 255, "
                f"accuracy {accuracies[0]:.4f} full and {accuracies[1]:.4f} scaled, agreement {agreement:.4f}"
            )


def _enlarged(data: bytes) -> bytes:
    image, out = load_image(data), io.BytesIO()
    ratio = CAMERA_SIDE / min(image.size)
    size = round(image.width * ratio), round(image.height * ratio)
    image.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def _pixels(data: bytes, spec: PreprocessSpec, factor: int) -> NDArray[np.uint8]:
    return np.asarray(to_pixels(load_image(data, scale=lambda *_: factor), spec))


def _compiled(model: torch.nn.Module, side: int) -> ov.CompiledModel:
    network = ov.convert_model(model, example_input=torch.zeros(2, 3, side, side), input=[-1, 3, side, side])
    return ov.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def _features(run: ov.CompiledModel, pixels: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    rows = []
    for start in range(0, len(pixels), BATCH):
        batch = np.empty((len(pixels[start : start + BATCH]), 3, *spec.input_size), np.float32)
        for row, image in zip(batch, pixels[start : start + BATCH], strict=True):
            normalize(image, spec, row)
        rows.append(run([batch])[0].copy())
    return np.concatenate(rows)


def _compare(full: NDArray[np.float32], scaled: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[tuple[float, float], float]:
    """Return the accuracies with full and scaled decoding, and the ratio of equal predictions. A head predicts the half it has not seen."""
    half = np.random.default_rng(0).integers(0, 2, len(labels))
    mean, deviation = full.mean(axis=0), full.std(axis=0) + 1e-6
    found = np.zeros((2, len(labels)), np.int64)
    for part in (0, 1):
        head = LogisticRegression(C=0.01, max_iter=300).fit((full[half == part] - mean) / deviation, labels[half == part])
        for row, features in zip(found, (full, scaled), strict=True):
            row[half != part] = head.predict((features[half != part] - mean) / deviation)
    return (float((found[0] == labels).mean()), float((found[1] == labels).mean())), float((found[0] == found[1]).mean())


if __name__ == "__main__":
    main()
