"""Training inputs: data set, resumable samplers, augmentation, frozen features, and activation cache."""
