"""Heads on frozen features: fitting (linear, k-NN, cosine, MLP), head modules, and transferability metrics."""
