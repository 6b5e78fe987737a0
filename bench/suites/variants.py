"""Variants that the suites measure, and the export that makes them."""

from __future__ import annotations

from edgetl.export.config import ExportConfig

VARIANTS = ("onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-int8")
# Few images, and an accuracy gate that passes every variant.
EXPORT = ExportConfig(max_drop=0.1, min_agreement=0.8, gate_images=200, calibration_images=100)
