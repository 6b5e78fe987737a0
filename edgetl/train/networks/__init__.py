"""Networks: torch modules and their structure (stages, partition, progressive networks, pruned networks, stochastic depth)."""
