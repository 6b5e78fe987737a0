"""Tables of accuracy and agreement, on the reference images."""
