"""pytest-benchmark suites: time of each part of edgetl on this host (``make bench``)."""
