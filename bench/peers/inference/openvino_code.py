"""Plain OpenVINO: usual code with Pillow, NumPy and one infer request, with the documented hint for latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import openvino as ov

from bench.peers.inference.usual_code import prepare
from bench.peers.worker import Setting


class Plain:
    def __init__(self, setting: Setting) -> None:
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": setting.threads, "INFERENCE_PRECISION_HINT": "f32"}
        self.request = ov.compile_model(setting.models / f"openvino/{setting.precision}.xml", "CPU", hints).create_infer_request()
        self.spec = setting.spec
        self.labels: list[str] = self.spec["labels"]

    def predict(self, data: bytes) -> str:
        return self.labels[int(self.request.infer([prepare(data, self.spec)], share_inputs=True)[0].argmax())]

    def predict_batch(self, images: Sequence[bytes]) -> list[str]:
        logits = self.request.infer([np.concatenate([prepare(data, self.spec) for data in images])], share_inputs=True)[0]
        return [self.labels[index] for index in logits.argmax(axis=1)]

    def network(self, data: bytes) -> Callable[[], object]:
        batch = prepare(data, self.spec)
        return lambda: self.request.infer([batch], share_inputs=True)


def load(setting: Setting) -> Plain:
    return Plain(setting)
