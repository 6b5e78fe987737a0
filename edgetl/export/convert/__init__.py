"""Model conversion: torch to ONNX, ONNX to OpenVINO, weight-only quantization, pixel input, metadata."""
