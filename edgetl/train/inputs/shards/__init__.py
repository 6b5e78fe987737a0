"""Inputs of a training from shards: order, stream, batches and features."""
