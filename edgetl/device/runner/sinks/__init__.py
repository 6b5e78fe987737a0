"""Sinks of a runner: JSON Lines and CSV on standard output or in a file, MQTT and HTTP with a spool."""
