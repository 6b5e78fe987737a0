"""Networks: torch modules and their structure (stages, partition, progressive columns, pruned layers, stochastic depth)."""
