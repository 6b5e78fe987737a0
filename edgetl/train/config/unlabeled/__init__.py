"""Options and results of the commands for unlabeled images."""
