"""MLPerf scenarios: single-stream, multi-stream, server and offline, for the whole path and for the network alone."""
