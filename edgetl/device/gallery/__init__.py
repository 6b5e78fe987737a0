"""k-NN gallery of a device: images of known or new classes that are added to a k-NN bundle without training."""
