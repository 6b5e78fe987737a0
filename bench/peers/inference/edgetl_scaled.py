"""edgetl with scaled JPEG decoding, which ``edgetl tune`` selects if the accuracy gate has kept it and it is the fastest."""

from __future__ import annotations

import edgetl
from bench.peers.inference.edgetl_onnxruntime import Predictor
from bench.peers.worker import Setting
from edgetl.core.system.execution import ExecutionSetting
from edgetl.runtime.predictor import load_variant


class ScaledPredictor(Predictor):
    def __init__(self, setting: Setting) -> None:
        bundle = edgetl.open_bundle(setting.models / "bundle")
        scaled = ExecutionSetting(decode="scaled", static_batch=True)
        self.predictor = load_variant(bundle, bundle.variant(f"openvino-{setting.precision}"), threads=setting.threads, setting=scaled)


def load(setting: Setting) -> Predictor:
    return ScaledPredictor(setting)
