"""Commands on images and labels before a training."""
