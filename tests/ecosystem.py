"""Predictions of exported files by other libraries, without edgetl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = Sequence[NDArray[np.uint8]]

# A script that needs only the file, NumPy, Pillow and one engine. All settings come from the metadata of the file.
PREPARE = """
import json, math, sys
import numpy as np
from PIL import Image, ImageOps

def prepare(path, spec):
    assert spec["crop_mode"] == "center"
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    height, width = spec["input_size"]
    scale = math.floor(height / spec["crop_pct"]) / min(image.size)
    image = image.resize([max(width, int(side * scale)) for side in image.size], Image.Resampling[spec["interpolation"].upper()])
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    return ((pixels - spec["mean"]) / spec["std"]).astype(np.float32).transpose(2, 0, 1)[None]
"""
ONNXRUNTIME = """
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
spec, labels = json.loads(about["edgetl preprocess"]), json.loads(about["edgetl labels"])
run = lambda batch: session.run(None, {session.get_inputs()[0].name: batch})[0]
"""
OPENVINO = """
import openvino as ov
model = ov.Core().read_model(sys.argv[1])
spec, labels = (json.loads(str(model.get_rt_info(["edgetl", key]).astype(str))) for key in ("preprocess", "labels"))
compiled = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
run = lambda batch: compiled(batch)[0]
"""
PREDICT = """
json.dump([labels[int(run(prepare(path, spec)).argmax())] for path in json.load(sys.stdin)], sys.stdout)
"""
TIMM = """
import json, sys
import timm, torch
from PIL import Image
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
labels = model.pretrained_cfg["label_names"]
with torch.inference_mode():
    rows = [model(transform(Image.open(path).convert("RGB"))[None]) for path in json.load(sys.stdin)]
json.dump([labels[row.argmax().item()] for row in rows], sys.stdout)
"""
TRANSFORMERS = """
import json, sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
assert type(model).__name__ == "TimmWrapperForImageClassification" and type(processor).__name__ == "TimmWrapperImageProcessor"
with torch.inference_mode():
    rows = [model(**processor(Image.open(path).convert("RGB"))).logits for path in json.load(sys.stdin)]
json.dump([model.config.id2label[row.argmax().item()] for row in rows], sys.stdout)
"""


def predicted_labels(script: str, file: Path, photos: Sequence[Path]) -> list[str]:
    """Run ``script`` in a new process without network access, and return the labels that it prints."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(file)],
        input=json.dumps([str(path) for path in photos]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def model_api(file: Path, **settings: str) -> Callable[[Images], list[str]]:
    """Return a classifier of Intel Model API for RGB images. ``settings`` override the metadata of ``file``."""
    from model_api.adapters import ONNXRuntimeAdapter
    from model_api.models import ClassificationModel

    if file.suffix == ".onnx":
        model = ClassificationModel(ONNXRuntimeAdapter(str(file)), settings, preload=True)
    else:
        model = ClassificationModel.create_model(str(file), configuration=settings, device="CPU")
    # Model API expects BGR, like OpenCV.
    return lambda images: [model(np.ascontiguousarray(image[:, :, ::-1])).top_labels[0].name for image in images]


def decoded(photos: Sequence[Path]) -> list[NDArray[np.uint8]]:
    """Return the decoded photographs, RGB, at full size."""
    return [np.asarray(Image.open(path).convert("RGB")) for path in photos]


def agreement(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the ratio of equal labels."""
    return float(np.mean([one == other for one, other in zip(first, second, strict=True)]))
