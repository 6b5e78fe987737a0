"""Agreement of other libraries with edgetl on the same files: ratio of 200 photographs of trashnet with the same top class.

``python -m bench.accuracy.other_libraries [--run RUN] [--bundle BUNDLE]``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from bench.paths import SHARED
from bench.trashnet import run_and_bundle
from edgetl.core.images.decode import load_image
from edgetl.core.preprocess import to_pixels
from edgetl.export.to_hub import share_run
from edgetl.runtime.predictor import load
from tests.ecosystem import ONNXRUNTIME, OPENVINO, PREDICT, PREPARE, TIMM, TRANSFORMERS, agreement, decoded, model_api, predicted_labels

MODEL_API_RESIZES = ("crop", "standard", "fit_to_window", "fit_to_window_letterbox")


def main() -> None:
    """Print one line for each library and file."""
    with run_and_bundle("bench.accuracy.other_libraries", __doc__) as (run, bundle):
        compare(run, bundle)


def compare(run: Path, bundle: Path) -> None:
    photos = sorted((SHARED / "data/trashnet").glob("*/*.jpg"))[::12][:200]
    predictor = load(bundle, variant="onnx-fp32")
    expected = [prediction.label or "" for prediction in predictor.predict(photos)]
    onnx, xml = bundle / "onnx-fp32/1/model.onnx", bundle / "openvino-fp32/1/model.xml"
    originals, resized = decoded(photos), [np.asarray(to_pixels(load_image(path), predictor.spec)) for path in photos]
    with tempfile.TemporaryDirectory() as work:
        hub = Path(work) / "hub"
        share_run(run, hub)
        found = {
            "NumPy, Pillow, ONNX Runtime": predicted_labels(PREPARE + ONNXRUNTIME + PREDICT, onnx, photos),
            "NumPy, Pillow, OpenVINO": predicted_labels(PREPARE + OPENVINO + PREDICT, xml, photos),
            "timm, run": predicted_labels(TIMM, run, photos),
            "timm, Hugging Face folder": predicted_labels(TIMM, hub, photos),
            "transformers, Hugging Face folder": predicted_labels(TRANSFORMERS, hub, photos),
        }
    for file in (xml, onnx):
        found[f"Model API, {file.name}, images resized by edgetl"] = model_api(file)(resized)
        found[f"Model API, {file.name}, original photographs, resize of the metadata"] = model_api(file)(originals)
    for resize in MODEL_API_RESIZES:
        for filter_ in ("LINEAR", "CUBIC"):
            settings = {"resize_type": resize, "interpolation_mode": filter_}
            found[f"Model API, {xml.name}, original photographs, {resize} {filter_}"] = model_api(xml, **settings)(originals)
    for name, labels in found.items():
        print(f"{agreement(labels, expected):.3f}  {name}")


if __name__ == "__main__":
    main()
