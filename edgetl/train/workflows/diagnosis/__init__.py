"""Diagnosis of a transfer: negative transfer, domain distance and learning curve."""
