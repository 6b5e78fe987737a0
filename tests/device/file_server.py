"""HTTP server of one file, with responses that a test controls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Handler with the behavior of ``Server.respond``."""

    server: Server

    def do_GET(self) -> None:
        """Answer a request."""
        self.server.requests.append(dict(self.headers))
        try:
            self.server.respond(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a response. Underscores of the header names are dashes."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_rest(self, data: bytes, *, most: int | None = None) -> None:
        """Send the requested range of a file, but at most ``most`` bytes of it."""
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        size = len(data)
        ranges = {"Content_Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
        end = size if most is None else start + most
        self.send(206 if start else 200, data[start:end], Content_Length=str(size - start), ETag='"1"', **ranges)
        self.close_connection = True


class Server(ThreadingHTTPServer):
    """Server of one response."""

    daemon_threads = True

    def __init__(self, respond: Callable[[Handler], None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond, self.requests = respond, list[dict[str, str]]()

    @property
    def url(self) -> str:
        """URL of the server."""
        return f"http://127.0.0.1:{self.server_port}/colors.edgetl"


@contextmanager
def served(respond: Callable[[Handler], None]) -> Iterator[Server]:
    """Run a server."""
    server = Server(respond)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
