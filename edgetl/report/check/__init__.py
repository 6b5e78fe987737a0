"""HTML page of ``edgetl check``."""
