"""optimum-intel: the image classification pipeline of transformers around ``OVModelForImageClassification``."""

from __future__ import annotations

from optimum.intel import OVModelForImageClassification
from transformers import AutoImageProcessor

from bench.peers.inference.transformers_pipeline import Pipeline
from bench.peers.worker import Setting


def load(setting: Setting) -> Pipeline:
    folder = str(setting.models / f"optimum-intel/{setting.precision}")
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": setting.threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = OVModelForImageClassification.from_pretrained(folder, ov_config=hints)
    return Pipeline(model, AutoImageProcessor.from_pretrained(folder), setting.threads)
