"""Ultralytics with its OpenVINO export."""

from __future__ import annotations

from bench.peers.inference.ultralytics_yolo import Classifier
from bench.peers.worker import Setting


def load(setting: Setting) -> Classifier:
    folder = {"fp32": "model_openvino_model", "int8": "model_int8_openvino_model"}[setting.precision]
    return Classifier(setting.models / "ultralytics" / folder, setting.threads)
