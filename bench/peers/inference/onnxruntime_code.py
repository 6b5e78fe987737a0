"""Plain ONNX Runtime: usual code with Pillow, NumPy and one session. The graph optimizations are the default, which is all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime

from bench.peers.inference.usual_code import prepare
from bench.peers.worker import Setting


class Plain:
    def __init__(self, setting: Setting) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads
        file = setting.models / f"onnx/{setting.precision}.onnx"
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.spec = setting.spec
        self.labels: list[str] = self.spec["labels"]

    def predict(self, data: bytes) -> str:
        return self.labels[int(self.session.run(None, {"input": prepare(data, self.spec)})[0].argmax())]

    def predict_batch(self, images: Sequence[bytes]) -> list[str]:
        logits = self.session.run(None, {"input": np.concatenate([prepare(data, self.spec) for data in images])})[0]
        return [self.labels[index] for index in logits.argmax(axis=1)]

    def network(self, data: bytes) -> Callable[[], object]:
        batch = prepare(data, self.spec)
        return lambda: self.session.run(None, {"input": batch})


def load(setting: Setting) -> Plain:
    return Plain(setting)
