"""k-NN gallery of a device: images that were added to a k-NN bundle without training, as feature vectors with labels."""
