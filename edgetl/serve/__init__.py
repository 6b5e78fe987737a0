"""HTTP on the device: the Open Inference Protocol, metrics."""
