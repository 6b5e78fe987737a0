"""Request head validation (RFC 9112, RFC 9110) for ``Host``, transfer codings, versions and expectations, which llhttp does not check."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgetl.serve.connections.rejection import MalformedRequestError

# Host and optional port (RFC 3986). The value is empty for a target without an authority.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.v]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?")
# An absolute target without a path (RFC 9112, 3.2.2).
_NO_PATH = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*://[^/?#]+)([?#].*)?", re.DOTALL)


def check_head(version: str, method: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Check a request head. Header names are lowercase.

    Raises:
        MalformedRequestError: 400 for a version other than HTTP/1.0 and HTTP/1.1, for CONNECT, for a missing, repeated or invalid ``Host``,
            and for a transfer coding in HTTP/1.0. 417 for an unknown expectation. 501 for an unknown transfer coding.
    """
    if version not in ("1.0", "1.1"):
        raise MalformedRequestError(400, "this server supports HTTP/1.1 and HTTP/1.0.")
    if method == b"CONNECT":
        raise MalformedRequestError(400, "CONNECT is not supported: this server is not a proxy.")
    _check_host(version, [value for name, value in headers if name == b"host"])
    codings = [coding.strip().lower() for name, value in headers if name == b"transfer-encoding" for coding in value.split(b",")]
    if codings and version == "1.0":
        raise MalformedRequestError(400, "HTTP/1.0 has no Transfer-Encoding. Send Content-Length, or use HTTP/1.1.")
    if codings and codings != [b"chunked"]:
        raise MalformedRequestError(501, "the only supported Transfer-Encoding is chunked. Compress a body with Content-Encoding.")
    if version == "1.1" and any(name == b"expect" and value.strip().lower() != b"100-continue" for name, value in headers):
        raise MalformedRequestError(417, "the only supported expectation is Expect: 100-continue.")


def _check_host(version: str, hosts: Sequence[bytes]) -> None:
    if len(hosts) > 1:
        raise MalformedRequestError(400, "the request has more than one Host header.")
    if not hosts and version == "1.1":
        raise MalformedRequestError(400, "the request has no Host header, which HTTP/1.1 requires.")
    if hosts and not _HOST.fullmatch(hosts[0].strip()):
        raise MalformedRequestError(400, "the Host header is not a valid host name or address with an optional port.")


def with_path(target: bytes) -> bytes:
    """Return the request target. An absolute target without a path gets ``/``."""
    match = _NO_PATH.fullmatch(target)
    return match[1] + b"/" + (match[2] or b"") if match else target
