"""Int8 quantization: the search, its attempts, a quantizer for each engine, sensitivity of operations."""
