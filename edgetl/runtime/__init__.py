"""What runs on the device: engines, predictor, evaluation, verification."""
