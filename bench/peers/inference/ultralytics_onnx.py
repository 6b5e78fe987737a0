"""Ultralytics with its ONNX export, run by ONNX Runtime."""

from __future__ import annotations

from bench.peers.inference.ultralytics_yolo import Classifier
from bench.peers.worker import Setting


def load(setting: Setting) -> Classifier:
    return Classifier(setting.models / "ultralytics/model.onnx", setting.threads)
