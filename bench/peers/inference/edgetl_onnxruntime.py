"""edgetl with ONNX Runtime: ``edgetl.load(bundle).predict(image)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import edgetl
from bench.peers.worker import Setting

FORMAT = "onnx"


class Predictor:
    def __init__(self, setting: Setting, format_: str) -> None:
        self.predictor = edgetl.load(setting.models / "bundle", variant=f"{format_}-{setting.precision}", threads=setting.threads)

    def predict(self, data: bytes) -> str:
        return self.predictor.predict(data).label or ""

    def predict_batch(self, images: Sequence[bytes]) -> list[str]:
        return [found.label or "" for found in self.predictor.predict(images)]

    def network(self, data: bytes) -> Callable[[], object]:
        batch = self.predictor.prepare(self.predictor.read(data))
        return lambda: self.predictor.logits(batch)


def load(setting: Setting) -> Predictor:
    return Predictor(setting, FORMAT)
