"""Packing: writing of shards from a folder of labeled images, and their label tables."""
