"""Training of anomaly detection from normal images."""
