"""Accuracy gate: agreement with the trained model, accuracy drop, unlabeled images."""
