"""Heads on frozen features: fits (linear, k-NN, cosine, MLP), head modules, transferability metrics."""
