"""edgetl with OpenVINO: ``edgetl.load(bundle).predict(image)``."""

from __future__ import annotations

from bench.peers.inference.edgetl_onnxruntime import Predictor
from bench.peers.worker import Setting


def load(setting: Setting) -> Predictor:
    return Predictor(setting, "openvino")
