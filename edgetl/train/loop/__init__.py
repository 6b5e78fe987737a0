"""Training loop: loss terms, optimizer and schedule, validation, checkpoints, loggers, processes and signals."""
