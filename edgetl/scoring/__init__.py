"""Batch scoring: predictions of many images, in shards that any scheduler can run, with resume and merge. No torch."""
