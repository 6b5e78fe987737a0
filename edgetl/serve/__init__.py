"""HTTP server: configuration, routes, service, metrics, web page; protocol, connections, workers."""
