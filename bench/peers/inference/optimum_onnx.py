"""optimum-onnx: the image classification pipeline of transformers around ``ORTModelForImageClassification``."""

from __future__ import annotations

from onnxruntime import SessionOptions
from optimum.onnxruntime import ORTModelForImageClassification
from transformers import AutoImageProcessor

from bench.peers.inference.transformers_pipeline import Pipeline
from bench.peers.worker import Setting


def load(setting: Setting) -> Pipeline:
    folder = str(setting.models / f"optimum-onnx/{setting.precision}")
    options = SessionOptions()
    options.intra_op_num_threads = setting.threads
    model = ORTModelForImageClassification.from_pretrained(folder, session_options=options)
    return Pipeline(model, AutoImageProcessor.from_pretrained(folder, use_fast=True), setting.threads)
