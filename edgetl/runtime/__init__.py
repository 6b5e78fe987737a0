"""Runtime without torch: inference engines, predictor, evaluation, verification, checks of model files."""
