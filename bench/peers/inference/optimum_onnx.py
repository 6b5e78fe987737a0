"""optimum-onnx: the image classification pipeline of transformers around ``ORTModelForImageClassification``."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxruntime import SessionOptions
from optimum.onnxruntime import ORTModelForImageClassification
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from bench.peers.worker import Setting


class Pipeline:
    def __init__(self, model: Any, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model, self.processor = model, AutoImageProcessor.from_pretrained(folder, use_fast=True)
        self.pipeline = pipeline("image-classification", model=model, image_processor=self.processor)

    def predict(self, data: bytes) -> str:
        label: str = self.pipeline(Image.open(io.BytesIO(data)), top_k=1)[0]["label"]
        return label

    def predict_batch(self, images: Sequence[bytes]) -> list[str]:
        found = self.pipeline([Image.open(io.BytesIO(data)) for data in images], top_k=1, batch_size=16)
        return [item[0]["label"] for item in found]

    def network(self, data: bytes) -> Callable[[], object]:
        batch = self.processor(Image.open(io.BytesIO(data)), return_tensors="pt")
        return lambda: self.model(**batch)


def load(setting: Setting) -> Pipeline:
    folder = str(setting.models / f"optimum-onnx/{setting.precision}")
    options = SessionOptions()
    options.intra_op_num_threads = setting.threads
    return Pipeline(ORTModelForImageClassification.from_pretrained(folder, session_options=options), folder, setting.threads)
