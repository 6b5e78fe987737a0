"""HTTP/1.1 connection: uvicorn's httptools protocol with limits on request heads, chunks, pipelining, and slow or idle clients.

The parser, llhttp, rejects Content-Length together with chunks, repeated lengths, and invalid chunks (compare CVE-2025-43859).
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from edgetl.serve.connections.flow_control import COMPLETED, Flow, ResponseTransport
from edgetl.serve.connections.rejection import MalformedRequestError, busy_response, error_response
from edgetl.serve.connections.request_head import check_head, with_path

MAX_HEAD_BYTES = 32_768
MAX_URL_BYTES = 8_192
MAX_CHUNKS = 16_384
# Bytes of a chunked body besides its content: chunk sizes and chunk extensions.
MAX_FRAMING_BYTES = 262_144
# Time limit for a request head, seconds, from the connection or from the first byte of the request.
HEAD_S = 10.0
_HEAD_TOO_LARGE = f"the request head is larger than {MAX_HEAD_BYTES} bytes."
# Time limit for a request body, seconds. The routes that read a body have a shorter limit and respond with 408.
BODY_S = 60.0
# Time limit for the client to read a response, seconds.
WRITE_S = 30.0
# Idle time, seconds, after which a draining server closes a connection.
IDLE_CLOSE_S = 1.0
# Limits of a lingering close: seconds and discarded bytes. An earlier reset could destroy a response in transit.
LINGER_S = 2.0
LINGER_BYTES = 16_000_000
# Bytes per call of the parser. One read of the socket can contain ten thousand pipelined requests.
_SLICE_BYTES = 8_192


class Connection(HttpToolsProtocol):
    """HTTP/1.1 connection with limits, on uvicorn's protocol.

    Attributes:
        max_connections: limit of open connections. Above it, the connection that has waited longest for its client is closed.
        on_malformed: callback for malformed requests, with the client's address and the status. No route handles these requests.
        is_full: returns true while no request can be admitted. Inference requests then get 503 before their body is read.
        on_rejected: callback for each 503, with the client's address.
        draining: true while the server shuts down. Every response then has ``Connection: close``.
    """

    max_connections: ClassVar[int] = 1024
    on_malformed: ClassVar[Callable[[str, int], None]] = staticmethod(lambda _client, _status: None)
    is_full: ClassVar[Callable[[], bool]] = staticmethod(lambda: False)
    on_rejected: ClassVar[Callable[[str], None]] = staticmethod(lambda _client: None)
    draining: ClassVar[bool] = False
    # Connections that wait for input from their client, in the order in which they began to wait.
    _waiting: ClassVar[dict[Connection, None]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = self._chunks = self._framing_bytes = 0
        # Between two requests, ``_complete`` is true. A head begins with the first byte of a request.
        self._in_head, self._complete = False, True
        self._close_after_request = False
        self._write_timer: asyncio.TimerHandle | None = None
        # Received bytes that are not parsed yet: requests behind one without a response.
        self._unread = bytearray()
        self._input_ended = False
        # Error of a malformed request. Its response follows the responses to earlier requests.
        self._error: MalformedRequestError | None = None
        self._previous: RequestResponseCycle | None = None
        self._active_at = 0.0
        self._lingering, self._discarded = False, 0

    @property
    def ending(self) -> bool:
        """True if nothing more will be written."""
        return self._lingering or self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit for the first request head."""
        super().connection_made(transport)
        self.flow = self._reading = Flow(transport)
        self._wait_for_client()
        self._set_timeout(HEAD_S)
        if len(self.connections) > self.max_connections:
            self._close_longest_waiting()
        if self.draining:
            self._close_when_idle()

    def _close_longest_waiting(self) -> None:
        """Close the connection that has waited longest for its client. It may be in the middle of a body."""
        longest = next((connection for connection in self._waiting if connection is not self), self)
        if not (longest._complete or longest._in_head):
            longest._refuse(MalformedRequestError(408, "the body arrived too slowly, and the server has no free connections. Try again."))
        longest.transport.abort()
        self._waiting.pop(longest, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers and discard unparsed input."""
        self._waiting.pop(self, None)
        self._set_timeout(None)
        self._cancel_write_timer()
        self._unread.clear()
        super().connection_lost(exc)

    def _wait_for_client(self) -> None:
        self._waiting.pop(self, None)
        self._waiting[self] = None
        self._active_at = self.loop.time()

    def _set_timeout(self, seconds: float | None) -> None:
        """Set the time limit for the next input, seconds. None removes the limit."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._on_timeout)

    def _on_timeout(self) -> None:
        """Close a connection after its time limit. An incomplete request head gets 408."""
        self._timer = None
        if self._lingering and self.transport.get_write_buffer_size() and self.loop.time() < self._active_at + WRITE_S:
            self._set_timeout(LINGER_S)
        elif self._lingering:
            self.transport.abort()
        elif self.flow.read_paused:
            # The server has paused reading, so the client cannot send more.
            self._set_timeout(HEAD_S)
        elif self._in_head:
            self._refuse(MalformedRequestError(408, f"the request head did not arrive within {HEAD_S:g} s."))
        else:
            self._abandon()
            self.linger()

    def pause_writing(self) -> None:
        """Pause writing. Abort the connection if the client reads nothing for ``WRITE_S``."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Resume writing, and parse the input received meanwhile."""
        self._cancel_write_timer()
        super().resume_writing()
        self._parse_received()

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # asyncio keeps the connection open if this returns true. uvicorn's annotation omits the return value.
    def eof_received(self) -> bool:  # type: ignore[override]
        """Handle the end of the client's input. Over plain TCP the client may still wait for a response."""
        self._input_ended = True
        if self.scheme == "https" or self.ending:
            return False
        return bool(self._unread) or self._error is not None or self._closes_after_response()

    def _closes_after_response(self) -> bool:
        """Return true if one response is still missing, and close the connection after it."""
        if not self._complete or not self._has_pending_response():
            return False
        self.cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        """Store received bytes and parse them."""
        if self._lingering:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.transport.abort()
        elif not self.transport.is_closing() and self._error is None:
            self._unread += data
            self._parse_received()

    def _parse_received(self) -> None:
        """Parse received bytes until a request must wait for the response to an earlier one."""
        while self._unread and not (self.ending or self._error or self.pipeline or self.flow.write_paused):
            part = bytes(self._unread[:_SLICE_BYTES])
            del self._unread[:_SLICE_BYTES]
            self._parse(part)
        if self.ending:
            return
        if self._error is not None:
            self._unread.clear()
        self._reading.hold(held=bool(self._unread) or self._error is not None)
        if self._input_ended and not self._unread and self._error is None and not self._closes_after_response():
            self.transport.close()

    def _parse(self, data: bytes) -> None:
        begun, in_body = self._in_head, not self._in_head and not self._complete
        super().data_received(data)
        if self.ending or self._error is not None:
            return
        if in_body and not self._complete:
            self._framing_bytes += len(data)
            if self._framing_bytes > MAX_FRAMING_BYTES:
                self._refuse(MalformedRequestError(400, f"the chunk sizes and extensions are larger than {MAX_FRAMING_BYTES} bytes."))
        if not self._in_head:
            return
        if not begun:
            self._set_timeout(HEAD_S)
            return
        # llhttp reports only complete headers. This check limits a header without an end.
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(MalformedRequestError(431, _HEAD_TOO_LARGE))

    def on_message_begin(self) -> None:
        """Handle the first byte of a request."""
        super().on_message_begin()
        self._complete, self._in_head = False, True
        self._head_bytes = self._chunks = self._framing_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Handle a part of the request target, and limit its length."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            raise MalformedRequestError(414, f"the URL is longer than {MAX_URL_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Handle a header. Reject a trailer, which follows a chunked body."""
        if not self._in_head:
            raise MalformedRequestError(400, "trailers are not supported.")
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise MalformedRequestError(431, _HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Check the complete head. Admit the request, or reject it with 503 while the queue is full."""
        version, method = self.parser.get_http_version(), self.parser.get_method()
        check_head(version, method, self.headers)
        if self.parser.should_upgrade():
            # After an upgrade, llhttp would parse the body as the next request.
            raise MalformedRequestError(400, "this server supports HTTP/1.1 without upgrades. Remove the Upgrade header.")
        self.url = with_path(self.url)
        self.expect_100_continue = self.expect_100_continue and version == "1.1"
        self._in_head = False
        self._wait_for_client()
        self._set_timeout(BODY_S)
        if method == b"POST" and not self._has_pending_response() and type(self).is_full():
            self._reject()
        else:
            self._admit()

    def _admit(self) -> None:
        previous, behind = self.cycle, self._has_pending_response()
        super().on_headers_complete()
        self._previous = previous
        self.cycle.transport = ResponseTransport(self)  # type: ignore[assignment]
        if self.draining:
            # Only the last response on a connection has ``Connection: close``.
            self.cycle.keep_alive = False
            if behind and not previous.response_started:
                previous.keep_alive = True

    def _reject(self) -> None:
        """Respond with 503 and discard the body."""
        self._close_after_request = self.draining or not self.parser.should_keep_alive()
        self.transport.write(busy_response(self.headers, last=self._close_after_request))
        self.cycle = COMPLETED
        type(self).on_rejected((self.client or ("", 0))[0])

    def on_chunk_header(self) -> None:
        """Limit the number of chunks."""
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            raise MalformedRequestError(400, f"the body has more than {MAX_CHUNKS} chunks.")

    def on_body(self, body: bytes) -> None:
        """Handle a part of the body."""
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Handle the end of a request."""
        self._complete = True
        self._set_timeout(None)
        self._waiting.pop(self, None)
        super().on_message_complete()
        self._begin_idle()

    def on_response_complete(self) -> None:
        """Handle the end of a response, and parse the next pipelined request."""
        if self._lingering:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self._error is not None and not self._has_pending_response():
            self._respond_and_close(self._error)
            return
        self._parse_received()
        self._begin_idle()

    def _begin_idle(self) -> None:
        """Begin the wait for the next request if request and response are both complete."""
        if not self._complete or self._has_pending_response() or self.ending:
            return
        if self._close_after_request:
            self.linger()
            return
        self._wait_for_client()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if self.draining:
            self._close_when_idle()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection after the keep-alive time, unless a request is arriving."""
        if not self._has_unread_input():
            self.linger()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Respond to a request that llhttp or a limit of this class rejected."""
        # httptools replaces the exception of a callback by its own. The original is its context.
        error = sys.exception()
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
        self._refuse(cause if isinstance(cause, MalformedRequestError) else MalformedRequestError(400, "this is not a valid HTTP request."))

    def _refuse(self, error: MalformedRequestError) -> None:
        """Write the error response after the responses to earlier requests, then close. If this response has begun, only close."""
        if self.pipeline and not self._in_head and not self._complete:
            # The request with the invalid body is still in the pipeline. The requests before it are valid.
            self.pipeline.popleft()
            self.cycle, self._complete = self._previous, True  # type: ignore[assignment]
        if self._has_pending_response() and (self._in_head or self._complete):
            self._error = error
            self._set_timeout(None)
            return
        if self._has_pending_response() and self.cycle.response_started:
            self._abandon()
            self.linger()
            return
        self._abandon()
        self._respond_and_close(error)

    def _abandon(self) -> None:
        """Discard the rest of the current response."""
        if self._has_pending_response():
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _respond_and_close(self, error: MalformedRequestError) -> None:
        type(self).on_malformed((self.client or ("", 0))[0], error.status)
        self.transport.write(error_response(error))
        self.linger()

    def linger(self) -> None:
        """Close the sending side, then discard input until the client closes or ``LINGER_S`` has passed (RFC 9112, 9.6)."""
        if self.ending:
            return
        self._lingering, self._active_at = True, self.loop.time()
        self._unread.clear()
        self._waiting.pop(self, None)
        self._unset_keepalive_if_required()
        self._set_timeout(LINGER_S)
        if self._input_ended or not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:
            # The client has reset the connection.
            self.transport.abort()
            return
        self._reading.held = False
        self._reading.resume_reading()

    def shutdown(self) -> None:
        """Close the connection at shutdown, after the current response and after requests in transit."""
        if self._has_pending_response() and not self.cycle.response_started:
            self.cycle.keep_alive = False
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        """Close the connection after it was idle for ``IDLE_CLOSE_S``."""
        if self._has_pending_response() or not self._complete or self.ending:
            return
        remaining = self._active_at + IDLE_CLOSE_S - self.loop.time()
        if remaining > 0:
            self.loop.call_later(remaining, self._close_when_idle)
        elif not self._has_unread_input():
            self.linger()

    def _has_unread_input(self) -> bool:
        """Return true if the socket has unread bytes. Closing would then reset the connection and lose a request."""
        if self.ending:
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _has_pending_response(self) -> bool:
        """Return true if a response is not complete yet."""
        # Before the first request there is no cycle, which uvicorn's annotation omits.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete
