"""Domain adaptation without labels: AdaBN, losses of target images, pseudo-labels, and validation without labels."""
