"""Executors: run independent tasks in several processes. No torch."""
