"""Runtime: inference engines, predictor, evaluation, verification, checks of model files."""
