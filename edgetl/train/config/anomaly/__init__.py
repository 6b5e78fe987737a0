"""Options of anomaly detection."""
