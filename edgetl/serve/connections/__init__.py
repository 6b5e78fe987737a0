"""HTTP connections: listening socket, HTTP/1.1 with limits, access middleware."""
