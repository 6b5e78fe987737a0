"""HTTP server for bundles: routes, model reload, metrics, web page."""
