"""optimum-intel: the image classification pipeline of transformers around ``OVModelForImageClassification``."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import torch
from optimum.intel import OVModelForImageClassification
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from bench.peers.worker import Setting


class Pipeline:
    def __init__(self, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        folder = str(setting.models / f"optimum-intel/{setting.precision}")
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": setting.threads, "INFERENCE_PRECISION_HINT": "f32"}
        self.model = OVModelForImageClassification.from_pretrained(folder, ov_config=hints)
        self.processor = AutoImageProcessor.from_pretrained(folder)
        self.pipeline = pipeline("image-classification", model=self.model, image_processor=self.processor)

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
    return Pipeline(setting)
