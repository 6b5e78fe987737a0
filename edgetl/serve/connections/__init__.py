"""Connections: listener, HTTP/1.1 with limits, access middleware."""
