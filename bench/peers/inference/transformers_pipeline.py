"""Image classification pipeline of transformers around a model of Optimum."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import pipeline


class Pipeline:
    def __init__(self, model: Any, processor: Any, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model, self.processor = model, processor
        self.pipeline = pipeline("image-classification", model=model, image_processor=processor)

    def predict(self, data: bytes) -> str:
        label: str = self.pipeline(Image.open(io.BytesIO(data)), top_k=1)[0]["label"]
        return label

    def predict_batch(self, images: Sequence[bytes]) -> list[str]:
        found = self.pipeline([Image.open(io.BytesIO(data)) for data in images], top_k=1, batch_size=16)
        return [item[0]["label"] for item in found]

    def network(self, data: bytes) -> Callable[[], object]:
        batch = self.processor(Image.open(io.BytesIO(data)), return_tensors="pt")
        return lambda: self.model(**batch)
