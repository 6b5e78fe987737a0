"""Commands: one function for each, grouped by topic."""
