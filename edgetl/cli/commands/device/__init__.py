"""Commands of a device: keys, store, tuning, runner."""
