"""Pretraining: the embedded backbone from its recipe, and continued pretraining on unlabeled images of the user."""
