"""Conversion: torch to ONNX, ONNX to OpenVINO, weights in 8 bits, pixel input, metadata."""
