"""Inputs of a training: data set, resumable samplers, augmentation, frozen features, activation cache."""
