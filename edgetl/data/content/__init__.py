"""Content of image files: integrity, colors, segmentation masks."""
