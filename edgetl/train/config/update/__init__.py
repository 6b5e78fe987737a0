"""Model update (``edgetl update``): options, and result of the promotion gate."""
