"""Int8 quantization: quantization search, attempts, a quantizer for each engine, sensitivity of operations."""
