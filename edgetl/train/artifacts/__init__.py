"""Networks on disk: run record, run folders and their writer, plots, and loading of weights."""
