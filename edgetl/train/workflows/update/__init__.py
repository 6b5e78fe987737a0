"""Model update (``edgetl update``): new images, replay memory, head, checks of the labels, promotion gate, and the updated run."""
