"""Device: signatures, store, tuning, runner and monitoring. This package never imports torch."""
