"""Ultralytics: ``YOLO(file)(image)`` with its own classification network. No weights are pretrained; the label means nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from ultralytics import YOLO

from bench.peers.worker import Setting


class Classifier:
    def __init__(self, file: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self.model = YOLO(file, task="classify")

    def predict(self, data: bytes) -> str:
        return self.predict_batch([data])[0]

    def predict_batch(self, images: Sequence[bytes]) -> list[str]:
        # The exported files have a batch of one, which is the default of its export.
        found = [self.model(_decode(data), verbose=False, device="cpu", imgsz=224)[0] for data in images]
        return [result.names[result.probs.top1] for result in found]

    def network(self, data: bytes) -> Callable[[], object]:
        self.predict(data)
        backend, batch = self.model.predictor.model, torch.rand(1, 3, 224, 224)

        @torch.inference_mode()
        def call() -> object:
            return backend(batch)

        return call


def _decode(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def load(setting: Setting) -> Classifier:
    return Classifier(setting.models / "ultralytics/model.pt", setting.threads)
