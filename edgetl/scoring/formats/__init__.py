"""Table formats of predictions: JSON lines, CSV and Parquet."""
