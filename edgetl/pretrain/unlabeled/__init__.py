"""Continued pretraining on unlabeled images of the user: distillation from a larger network, and self-supervised training."""
