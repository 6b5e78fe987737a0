"""Training from shards: the linear probe."""
