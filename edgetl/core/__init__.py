"""Core: preprocessing, output decoding, metrics, manifest, bundle, results; images, files, output folders, system."""
