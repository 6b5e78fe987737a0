"""From a trained run to checked, packaged files."""
