"""Download of a transport file: resumable, limited by the size that its signed manifest gives, and with time limits.

Only https is accepted, also after redirects. The manifest and its signature are the first bytes of a transport file. They are checked
before the rest is requested, and the size of the whole file follows from them.
"""

from __future__ import annotations

import http.client
import io
import logging
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO

from edgetl.core.files.atomic import storage_error
from edgetl.core.progress import Progress, silent
from edgetl.errors import EdgetlError, InstallError, IntegrityError

_log = logging.getLogger(__name__)

# Time limit for a response, and for the next bytes of it, seconds.
TIMEOUT_S = 30.0
# A connection must transfer this number of bytes in each interval of this length, seconds.
SLOWEST_BYTES, INTERVAL_S = 32_000, 30.0
ATTEMPTS = 5
# Manifest, signature, and their zip headers fit into these bytes.
HEAD_BYTES = 1_100_000
_BLOCK_BYTES = 1 << 16
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _InterruptedError(Exception):
    """The connection failed. Another attempt may succeed."""


def is_url(source: str) -> bool:
    """Return true if ``source`` is a URL and not a path."""
    return "://" in source


def check_url(url: str, *, allow_http: bool) -> None:
    """Check the scheme and host of a URL.

    Raises:
        InstallError: the URL is not https, and not an allowed http URL of this host.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        scheme, host = parts.scheme, parts.hostname or ""
    except ValueError as error:
        raise InstallError(f"{url} is not a valid URL: {error}.") from error
    if scheme == "https" and host:
        return
    if scheme == "http" and allow_http and host in _LOOPBACK:
        return
    raise InstallError(f"{url} is refused: downloads need https. Give an https:// URL, a file, or a folder.")


def download(
    url: str,
    target: Path,
    *,
    signed_size: Callable[[Path], int | None],
    allow_http: bool = False,
    progress: Progress = silent,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Download a transport file. An incomplete file is continued, also by a later call.

    Args:
        url: https URL.
        target: file to write. Its entity tag is kept beside it, to detect a changed file on the server.
        signed_size: returns the size of the whole file from its beginning, after a check of the signature. None ends the download: the
            rest of the file is not needed.
        allow_http: accept http URLs of this host.
        progress: called with the number of received bytes.
        wait: waits some seconds.

    Raises:
        InstallError: the URL or the response is refused, or all attempts failed. In the latter case the received part is kept.
        BundleError: the file is not a transport file, or its signature is not valid.
        StorageError: the file cannot be written.
    """
    check_url(url, allow_http=allow_http)
    transfer = _Transfer(url, target, _opener(allow_http), signed_size=signed_size, progress=progress)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            transfer.run()
        except _InterruptedError as error:
            if attempt == ATTEMPTS:
                raise InstallError(f"the download of {url} stopped: {error}. Run the command again to continue it.") from error
            _log.warning("the download is continued after an interruption: %s", error)
            wait(2.0**attempt)
        except EdgetlError:
            transfer.discard()
            raise
        else:
            return


class _Transfer:
    """Transfer of a file in one or several connections."""

    def __init__(
        self,
        url: str,
        target: Path,
        opener: urllib.request.OpenerDirector,
        *,
        signed_size: Callable[[Path], int | None],
        progress: Progress,
    ) -> None:
        self.url, self._target, self._opener = url, target, opener
        self._tag_file = target.with_suffix(".etag")
        self._signed_size, self._progress = signed_size, progress
        self._limit: int | None = None
        self.received = 0

    def discard(self) -> None:
        """Remove the received part."""
        for path in (self._target, self._tag_file):
            with suppress(OSError):
                path.unlink()
        self.received, self._limit = 0, None

    def run(self) -> None:
        """Receive the rest of the file in one connection."""
        tag = self._tag()
        headers = {"User-Agent": f"edgetl/{version('edgetl')}", "Accept-Encoding": "identity"}
        if self.received:
            headers |= {"Range": f"bytes={self.received}-", "If-Range": tag}
        with self._open(urllib.request.Request(self.url, headers=headers)) as response:
            self._check(response, tag)
            length = response.headers.get("Content-Length", "")
            total = self.received + int(length) if length.isdecimal() else None
            self._receive(response, total)

    def _tag(self) -> str:
        """Return the entity tag of the received part. Without a strong tag, the download begins again."""
        try:
            self.received, tag = self._target.stat().st_size, self._tag_file.read_text("ascii")
        except (OSError, ValueError):
            self.received, tag = 0, ""
        if not (tag.startswith('"') and tag.isprintable()):
            self.received = 0
        return tag

    def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                self.discard()
            if error.code in (408, 416, 425, 429) or error.code >= 500:
                raise _InterruptedError(f"the server responded {error.code}") from error
            raise InstallError(f"{self.url}: the server responded {error.code} {error.reason}. Check the URL.") from error
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise InstallError(f"{self.url}: the certificate of the server is not valid: {reason.verify_message}.") from error
            raise _InterruptedError(str(reason) or type(reason).__name__) from error
        return response

    def _check(self, response: http.client.HTTPResponse, tag: str) -> None:
        """Check the headers of a response, and prepare the file for its body."""
        kind = response.headers.get_content_type()
        if kind in ("text/html", "application/xhtml+xml"):
            raise InstallError(
                f"{self.url} is a web page ({kind}), not a transport file. Check the URL. Some networks send a login page first."
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise InstallError(f"{self.url}: the server compresses the file, which is refused. Serve it as application/octet-stream.")
        found = response.headers.get("ETag", "")
        if response.status == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {self.received}-") or found != tag:
                self.discard()
                raise _InterruptedError("the file on the server has changed")
            return
        self.discard()
        try:
            self._tag_file.write_text(found if found.isascii() else "", "ascii")
        except OSError as error:
            raise storage_error(self._target, error) from error

    def _receive(self, response: http.client.HTTPResponse, total: int | None) -> None:
        pace = _Pace()
        with self._file() as file:
            while block := self._read(response):
                count = len(block)
                self.received += count
                try:
                    while block:  # a disk that becomes full takes a part of a block
                        block = block[file.write(block) :]
                except OSError as error:
                    raise storage_error(self._target, error) from error
                if self._limit is None and self.received >= HEAD_BYTES and not self._check_size(total):
                    return
                if self._limit is not None and self.received > self._limit:
                    raise self._wrong_size(f"more than {self._limit:,} bytes")
                pace.add(count)
                self._progress("download", self.received, self._limit or total or 0)
        if total is not None and self.received < total:
            raise _InterruptedError(f"the connection was closed after {self.received:,} of {total:,} bytes")
        if self._check_size(total) and self.received != self._limit:
            raise self._wrong_size(f"{self.received:,} bytes")

    def _check_size(self, total: int | None) -> bool:
        """Determine the size of the whole file from its signed beginning, and compare it with the size that the server reports.

        Returns:
            False if the rest of the file is not needed.
        """
        if self._limit is None:
            self._limit = self._signed_size(self._target)
        if self._limit is not None and total is not None and total != self._limit:
            raise self._wrong_size(f"{total:,} bytes")
        return self._limit is not None

    def _wrong_size(self, found: str) -> IntegrityError:
        return IntegrityError(
            f"{self.url} has {found}, but its manifest gives a size of {self._limit or 0:,} bytes. Upload the file again."
        )

    def _file(self) -> io.FileIO:
        try:
            return open(self._target, "ab", buffering=0)
        except OSError as error:
            raise storage_error(self._target, error) from error

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read1(_BLOCK_BYTES)  # returns after the first bytes, so that a slow server is noticed
        except (OSError, http.client.HTTPException) as error:
            raise _InterruptedError(str(error) or type(error).__name__) from error


class _Pace:
    """Check that a connection transfers enough bytes in each interval."""

    def __init__(self) -> None:
        self._begun, self._bytes = time.monotonic(), 0

    def add(self, count: int) -> None:
        self._bytes += count
        elapsed = time.monotonic() - self._begun
        if elapsed < INTERVAL_S:
            return
        if self._bytes < SLOWEST_BYTES:
            raise _InterruptedError(f"the server sent only {self._bytes:,} bytes in {elapsed:.0f} s")
        self._begun, self._bytes = time.monotonic(), 0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects to https only."""

    max_redirections = 5

    def __init__(self, *, allow_http: bool) -> None:
        self._allow_http = allow_http

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request for a redirect, after a check of its URL."""
        check_url(newurl, allow_http=self._allow_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(allow_http: bool) -> urllib.request.OpenerDirector:
    """Return an opener for https, with the proxies of the environment, and without handlers for files and ftp."""
    opener = urllib.request.OpenerDirector()
    handlers = [
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPHandler(),
        _Redirects(allow_http=allow_http),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    return opener
