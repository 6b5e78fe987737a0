"""Pretraining of the embedded backbone: recipe, images, compression and distillation."""
