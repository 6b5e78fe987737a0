"""Vocabulary shared by every room: preprocessing, manifest, bundle, results, files."""
