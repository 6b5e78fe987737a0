"""One HTTP connection: uvicorn's protocol on llhttp, with the limits that it has not: on heads, on chunks, on slow and on idle clients.

llhttp is strict by default: a length together with chunks, a second length, or a bad chunk is refused, and the connection closed
(compare CVE-2025-43859 of another parser).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from edgetl.serve.gate import REQUEST_ID, SOUND_ID

MAX_HEAD_BYTES = 32_768
MAX_URL_BYTES = 8_192
MAX_CHUNKS = 16_384
# A request's head arrives within this after the connection, or after its first byte.
HEAD_S = 10.0
_LONG_HEAD = f"a request's head may have {MAX_HEAD_BYTES} bytes."
# And its body within this; whoever reads the body has a shorter limit, and an answer for it.
BODY_S = 60.0
# And its answers are read within this.
WRITE_S = 30.0
# A connection without a request when the server ends has so long to send what may be on its way.
LAST_S = 0.5


BUSY = "too many requests wait; try again."
RETRY_AFTER_S = 1
_BUSY_BODY = b"\r\n" + json.dumps({"error": BUSY}, separators=(",", ":")).encode()
_BUSY_HEAD = STATUS_LINE[503] + b"content-type: application/json\r\nretry-after: %d\r\ncontent-length: %d\r\n" % (
    RETRY_AFTER_S,
    len(_BUSY_BODY) - 2,
)


class _RefusedError(Exception):
    """A request that is not read any further: its status, and what to say."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status, self.said = status, said


class Connection(HttpToolsProtocol):
    """As uvicorn's, and with limits.

    Attributes:
        most: connections at once; when there are more, the one that has waited longest for its next request goes.
        refused: called with the client's address and the status for what is cut off here, which no route ever sees.
        most_requests: handled at once; those that ask for something to be computed are turned away when there are so many.
        turned_away: called with the client's address for each that was.
    """

    most: ClassVar[int] = 1024
    refused: ClassVar[Callable[[str, int], None]] = staticmethod(lambda _client, _status: None)
    most_requests: ClassVar[int] = 1024
    turned_away: ClassVar[Callable[[str], None]] = staticmethod(lambda _client: None)
    # In the order in which they began to wait for a request.
    _idle: ClassVar[dict[Connection, None]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = self._chunks = 0
        # Between two requests it is complete; the head begins with a request's first byte.
        self._in_head, self._complete = False, True
        # Whether the connection ends with the request that is being read.
        self._last = False
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(transport)
        self._wait_for_request()
        self._within(HEAD_S)
        if len(self.connections) > self.most:
            longest = next(iter(self._idle))
            longest.transport.abort()
            self._idle.pop(longest, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """It went."""
        self._idle.pop(self, None)
        self._within(None)
        self._unstick()
        super().connection_lost(exc)

    def _wait_for_request(self) -> None:
        self._idle[self] = None

    def _within(self, seconds: float | None) -> None:
        """Close the connection unless this is called again within ``seconds``."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        """Nothing is owed to whoever does not finish a request; the answer is for those who can still read one."""
        self._timer = None
        if self._in_head:
            self._refuse(_RefusedError(408, f"the request's head did not arrive within {HEAD_S:g} s."))
        # A closed transport waits for the client to read; an aborted one does not.
        self.loop.call_later(1.0, self.transport.abort)
        self.transport.close()

    def pause_writing(self) -> None:
        """The client does not read its answers."""
        super().pause_writing()
        self._stuck = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._unstick()
        super().resume_writing()

    def _unstick(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    # asyncio asks whether to leave the connection open; uvicorn's annotation leaves that out.
    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more; over plain TCP it may still wait for its answer."""
        if not self._complete or not self._answering() or self.scheme == "https":
            return False
        self.cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self.transport.is_closing():
            return
        begun = self._in_head
        super().data_received(data)
        if self.transport.is_closing() or not self._in_head:
            return
        if not begun:
            self._within(HEAD_S)
            return
        # llhttp gives a header when it is whole, so one that never ends is only seen here.
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_RefusedError(431, _LONG_HEAD))

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._complete, self._in_head, self._head_bytes, self._chunks = False, True, 0, 0

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            raise _RefusedError(414, f"an address may have {MAX_URL_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or behind a body in chunks a trailer."""
        if not self._in_head:
            raise _RefusedError(400, "trailers are not taken.")
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _RefusedError(431, _LONG_HEAD)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self._idle.pop(self, None)
        self._within(BODY_S)
        if self.parser.should_upgrade():
            # llhttp takes what follows for another protocol, and so the body for the next request.
            raise _RefusedError(400, "this server speaks HTTP/1.1 and upgrades to nothing: send no Upgrade header.")
        if self.parser.get_method() == b"POST" and len(self.tasks) >= self.most_requests and not self._answering():
            self._turn_away()
        else:
            super().on_headers_complete()

    def _turn_away(self) -> None:
        """503 as cheaply as can be, so that those who are inside are answered as fast as ever; the body is read past."""
        self._last = not self.parser.should_keep_alive()
        given = next((value for key, value in self.headers if key == REQUEST_ID), b"")
        name = b"x-request-id: %s\r\n" % given if SOUND_ID.fullmatch(given) else b""
        self.transport.write(b"".join((_BUSY_HEAD, name, b"connection: close\r\n" if self._last else b"", _BUSY_BODY)))
        self.cycle = _ANSWERED
        type(self).turned_away((self.client or ("", 0))[0])

    def on_chunk_header(self) -> None:
        """Another chunk of the body begins."""
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            raise _RefusedError(400, f"a body may come in {MAX_CHUNKS} chunks.")

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._complete = True
        self._within(None)
        super().on_message_complete()
        self._rest()

    def on_response_complete(self) -> None:
        """The answer is written."""
        super().on_response_complete()
        self._rest()

    def _rest(self) -> None:
        """Where a request and its answer are whole, whichever came last, nothing is going on but the waiting for the next request."""
        if not self._complete or self._answering() or self.transport.is_closing():
            return
        if self._last:
            self.transport.close()
            return
        self._wait_for_request()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """The connection was kept long enough."""
        if not self.transport.is_closing():
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """What llhttp, or a limit above, refused."""
        # httptools hides what a callback raised behind its own error.
        error = sys.exception()
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
        self._refuse(cause if isinstance(cause, _RefusedError) else _RefusedError(400, "this is not a valid HTTP request."))

    def _refuse(self, error: _RefusedError) -> None:
        """Answer and close; where an answer has begun, only close."""
        if self._answering():
            # Nobody will read what its handler still has to say.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        type(self).refused((self.client or ("", 0))[0], error.status)
        body = json.dumps({"error": error.said}, separators=(",", ":")).encode()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()

    def shutdown(self) -> None:
        """The server ends: what is being answered is finished, and what is on its way may still arrive."""
        if self._answering():
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(LAST_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self._answering():
            self.transport.close()

    def _answering(self) -> bool:
        """Whether a request's answer is not written yet; uvicorn's annotation leaves out that there is no cycle at first."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete


class _Answered:
    """What stands where uvicorn expects the handling of a request that has been answered already."""

    response_complete = True
    disconnected = False
    message_event = asyncio.Event()


_ANSWERED: Any = _Answered()
