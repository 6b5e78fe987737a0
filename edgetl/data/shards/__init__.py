"""Shards: tar archives of labeled images in the WebDataset layout, for data sets that do not fit in memory."""
