"""HTML page of clusters of similar images."""
