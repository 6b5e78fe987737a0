"""HTTP sink: one POST request with a JSON object for each record, on one connection."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Sequence
from urllib.parse import SplitResult

from edgetl.device.runner.sinks.outbox import RejectedError

# Limit for connecting and for each response, seconds.
TIMEOUT_S = 10.0
# Statuses of a record that is invalid for the receiver. All others are sent again: 401 and 404 may be corrected there.
_REJECTED = frozenset({400, 413, 415, 422})
_MAX_BODY_BYTES = 1 << 16


class HttpConnection:
    """Connection to an HTTP server that accepts ``POST`` with ``application/json`` and confirms with a status 2xx.

    Args:
        url: address, http or https.
        token: bearer token, or none.
    """

    batch = 1

    def __init__(self, url: SplitResult, token: str | None) -> None:
        if url.hostname is None:
            raise ValueError("the URL has no host")
        if url.scheme == "https":
            context = ssl.create_default_context()
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                url.hostname, url.port, timeout=TIMEOUT_S, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(url.hostname, url.port, timeout=TIMEOUT_S)
        self._target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._headers = {"Content-Type": "application/json", "User-Agent": "edgetl"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def send(self, records: Sequence[bytes]) -> None:
        """Send records, one request for each.

        Raises:
            OSError: no response, or a status that may change.
            RejectedError: the status 400, 413, 415 or 422.
        """
        for record in records:
            try:
                self._connection.request("POST", self._target, record, self._headers)
                response = self._connection.getresponse()
                body = response.read(_MAX_BODY_BYTES)
                if not response.isclosed():
                    self._connection.close()  # a long body: do not read the rest
            except http.client.HTTPException as error:
                raise ConnectionError(f"invalid HTTP response ({type(error).__name__})") from error
            if response.status in _REJECTED:
                raise RejectedError(f"status {response.status}, {body[:200].decode('utf-8', 'replace')}")
            if not 200 <= response.status < 300:
                raise ConnectionError(f"status {response.status} {response.reason}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
