"""Comparisons of two ways of doing the same, measured in turn in one run."""
