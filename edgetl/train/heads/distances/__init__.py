"""Anomaly detection on frozen features: distances to the Gaussian distribution of normal images."""
