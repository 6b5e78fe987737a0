"""Inputs with many images: folders, files, tar shards and Parquet files, in a fixed order and in blocks. No torch."""
