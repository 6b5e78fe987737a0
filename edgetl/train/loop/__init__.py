"""Training loop: loss terms, optimizer, learning-rate schedule, validation, checkpoints, loggers, processes and signals."""
