"""Networks on disk: run record, run folders and their writer, plots, sources of weights."""
