"""How often other libraries answer like edgetl from the same files, as printed in the README.

``python -m bench ecosystem``: of 200 photographs of trashnet, the share with the same top class.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from edgetl.core.images.decode import load_image
from edgetl.core.preprocess import to_pixels
from edgetl.export.to_hub import share_run
from edgetl.runtime.predictor import load
from tests.ecosystem import ANSWER, ONNXRUNTIME, OPENVINO, PREPARE, TIMM, TRANSFORMERS, agreement, answers, model_api, pictures

MODEL_API_RESIZES = ("crop", "standard", "fit_to_window", "fit_to_window_letterbox")


def main(run: Path, bundle: Path, shared: Path) -> None:
    """Print one line for each way."""
    photos = sorted((shared / "data/trashnet").glob("*/*.jpg"))[::12][:200]
    predictor = load(bundle, variant="onnx-fp32")
    ours = [answer.label or "" for answer in predictor.predict(photos)]
    onnx, xml = bundle / "onnx-fp32/1/model.onnx", bundle / "openvino-fp32/1/model.xml"
    whole, small = pictures(photos), [np.asarray(to_pixels(load_image(path), predictor.spec)) for path in photos]
    with tempfile.TemporaryDirectory() as work:
        hub = Path(work) / "hub"
        share_run(run, hub)
        found = {
            "NumPy, Pillow, ONNX Runtime": answers(PREPARE + ONNXRUNTIME + ANSWER, onnx, photos),
            "NumPy, Pillow, OpenVINO": answers(PREPARE + OPENVINO + ANSWER, xml, photos),
            "timm, the run": answers(TIMM, run, photos),
            "timm, the Hugging Face folder": answers(TIMM, hub, photos),
            "transformers, the Hugging Face folder": answers(TRANSFORMERS, hub, photos),
        }
    for file in (xml, onnx):
        found[f"Model API, {file.name}, pictures of the input's size"] = model_api(file)(small)
        found[f"Model API, {file.name}, whole photographs, as the file says"] = model_api(file)(whole)
    for resize in MODEL_API_RESIZES:
        for filter_ in ("LINEAR", "CUBIC"):
            settings = {"resize_type": resize, "interpolation_mode": filter_}
            found[f"Model API, {xml.name}, whole photographs, {resize} {filter_}"] = model_api(xml, **settings)(whole)
    for name, labels in found.items():
        print(f"{agreement(labels, ours):.3f}  {name}")
