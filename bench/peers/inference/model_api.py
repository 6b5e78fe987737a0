"""Intel Model API: ``ClassificationModel`` with the metadata of the file, and images decoded by OpenCV as in its examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from model_api.adapters import OpenvinoAdapter, create_core
from model_api.models import ClassificationModel

from bench.peers.worker import Setting


class Wrapper:
    def __init__(self, setting: Setting) -> None:
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": setting.threads, "INFERENCE_PRECISION_HINT": "f32"}
        file = str(setting.models / f"openvino/{setting.precision}.xml")
        adapter = OpenvinoAdapter(create_core(), file, device="CPU", plugin_config=hints)
        self.model = ClassificationModel(adapter, preload=True)

    def predict(self, data: bytes) -> str:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        label: str = self.model(image).top_labels[0].name
        return label

    def predict_batch(self, images: Sequence[bytes]) -> list[str]:
        return [self.predict(data) for data in images]

    def network(self, data: bytes) -> Callable[[], object]:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        inputs, _ = self.model.preprocess(image)
        return lambda: self.model.infer_sync(inputs)


def load(setting: Setting) -> Wrapper:
    return Wrapper(setting)
