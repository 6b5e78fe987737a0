"""Fine-tuning on torch: backbones, features, strategies, runs."""
