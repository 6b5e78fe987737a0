"""Sections of the report, by topic."""
