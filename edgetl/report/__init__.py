"""Report: one HTML page about runs and bundles. Reading a run needs the training libraries; a bundle alone does not."""
