"""Commands for unlabeled images: choose images to label, find groups of similar images."""
