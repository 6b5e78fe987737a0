"""HTTP/1.1 connection: uvicorn's protocol on llhttp, with limits on heads, chunks, pipelining, and on slow and idle clients.

llhttp is strict by default: it refuses a length together with chunks, a second length, or a bad chunk (compare CVE-2025-43859).
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from edgetl.serve.connections.flow_control import ANSWERED, Flow, Outlet
from edgetl.serve.connections.rejection import RefusedError, busy, refusal
from edgetl.serve.connections.request_head import check_head, with_path

MAX_HEAD_BYTES = 32_768
MAX_URL_BYTES = 8_192
MAX_CHUNKS = 16_384
# Bytes of a chunked body that are not its content: sizes of chunks and their extensions.
MAX_FRAMING_BYTES = 262_144
# A request's head arrives within this after the connection, or after its first byte.
HEAD_S = 10.0
_LONG_HEAD = f"a request's head may have {MAX_HEAD_BYTES} bytes."
# And its body within this; whoever reads the body has a shorter limit, and an answer for it.
BODY_S = 60.0
# And its answers are read within this.
WRITE_S = 30.0
# Idle time, seconds, after which a draining server closes a connection without a request.
LAST_S = 1.0
# Limits of a lingering close: seconds, and bytes that are read. A reset before could destroy the response on its way.
LINGER_S = 2.0
LINGER_BYTES = 16_000_000
# Parsed at once; a read of the socket may hold ten thousand pipelined requests.
_SLICE_BYTES = 8_192


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with limits.

    Attributes:
        most: connections at once; beyond, the connection that has waited longest for its client is closed.
        refused: called with the client's address and the status of requests that are refused here, before any route.
        full: true while no request can be admitted; inference requests are then rejected (503) before their body is read.
        turned_away: called with the client's address of each rejected request.
        draining: the server ends: every response announces that its connection closes.
    """

    most: ClassVar[int] = 1024
    refused: ClassVar[Callable[[str, int], None]] = staticmethod(lambda _client, _status: None)
    full: ClassVar[Callable[[], bool]] = staticmethod(lambda: False)
    rejected: ClassVar[Callable[[str], None]] = staticmethod(lambda _client: None)
    draining: ClassVar[bool] = False
    # Connections that wait for their client (for a request, its head or its body), in the order in which they began to wait.
    _waiting: ClassVar[dict[Connection, None]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = self._chunks = self._framing_bytes = 0
        # Between two requests it is complete; the head begins with a request's first byte.
        self._in_head, self._complete = False, True
        # Whether the connection ends with the request that is being read.
        self._last = False
        self._stuck: asyncio.TimerHandle | None = None
        # Bytes that came and are not parsed yet: requests behind one that is being answered.
        self._unread = bytearray()
        # The client sends nothing more; a request was refused, and the answers before it are not written yet.
        self._ended = False
        self._failed: RefusedError | None = None
        self._previous: RequestResponseCycle | None = None
        self._active_at = 0.0
        self._lingering, self._discarded = False, 0

    @property
    def ending(self) -> bool:
        """True if nothing more will be written."""
        return self._lingering or self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(transport)
        self.flow = self._reading = Flow(transport)
        self._wait_for_client()
        self._within(HEAD_S)
        if len(self.connections) > self.most:
            self._make_room()
        if self.draining:
            self._end_when_idle()

    def _make_room(self) -> None:
        """Close the connection that has waited longest for its client, which may be in the middle of a body."""
        longest = next((connection for connection in self._waiting if connection is not self), self)
        if not (longest._complete or longest._in_head):
            longest._refuse(RefusedError(408, "the body arrived slowly, and other clients need the connection."))
        longest.transport.abort()
        self._waiting.pop(longest, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """It went."""
        self._waiting.pop(self, None)
        self._within(None)
        self._unstick()
        self._unread.clear()
        super().connection_lost(exc)

    def _wait_for_client(self) -> None:
        self._waiting.pop(self, None)
        self._waiting[self] = None
        self._active_at = self.loop.time()

    def _within(self, seconds: float | None) -> None:
        """Close the connection unless this is called again within ``seconds``."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        """Nothing is owed to whoever does not finish a request; the answer is for those who can still read one."""
        self._timer = None
        if self._lingering and self.transport.get_write_buffer_size() and self.loop.time() < self._active_at + WRITE_S:
            self._within(LINGER_S)
        elif self._lingering:
            self.transport.abort()
        elif self.flow.read_paused:
            # The server reads nothing now; the client is not to blame.
            self._within(HEAD_S)
        elif self._in_head:
            self._refuse(RefusedError(408, f"the request's head did not arrive within {HEAD_S:g} s."))
        else:
            self._abandon()
            self.linger()

    def pause_writing(self) -> None:
        """The client does not read its answers."""
        super().pause_writing()
        self._stuck = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._unstick()
        super().resume_writing()
        self._feed()

    def _unstick(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    # asyncio asks whether to leave the connection open; uvicorn's annotation leaves that out.
    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more; over plain TCP it may still wait for its answer."""
        self._ended = True
        if self.scheme == "https" or self.ending:
            return False
        return bool(self._unread) or self._failed is not None or self._answers_last()

    def _answers_last(self) -> bool:
        """True if the connection ends after a response that is not written yet."""
        if not self._complete or not self._answering():
            return False
        self.cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._lingering:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.transport.abort()
        elif not self.transport.is_closing() and self._failed is None:
            self._unread += data
            self._feed()

    def _feed(self) -> None:
        """Parse the received bytes, up to a request that must wait for the response to another."""
        while self._unread and not (self.ending or self._failed or self.pipeline or self.flow.write_paused):
            part = bytes(self._unread[:_SLICE_BYTES])
            del self._unread[:_SLICE_BYTES]
            self._parse(part)
        if self.ending:
            return
        if self._failed is not None:
            self._unread.clear()
        self._reading.hold(held=bool(self._unread) or self._failed is not None)
        if self._ended and not self._unread and self._failed is None and not self._answers_last():
            self.transport.close()

    def _parse(self, data: bytes) -> None:
        begun, in_body = self._in_head, not self._in_head and not self._complete
        super().data_received(data)
        if self.ending or self._failed is not None:
            return
        if in_body and not self._complete:
            self._framing_bytes += len(data)
            if self._framing_bytes > MAX_FRAMING_BYTES:
                self._refuse(RefusedError(400, f"chunk sizes and extensions may have {MAX_FRAMING_BYTES} bytes."))
        if not self._in_head:
            return
        if not begun:
            self._within(HEAD_S)
            return
        # llhttp gives a header when it is whole, so one that never ends is only seen here.
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(RefusedError(431, _LONG_HEAD))

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._complete, self._in_head = False, True
        self._head_bytes = self._chunks = self._framing_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            raise RefusedError(414, f"an address may have {MAX_URL_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or behind a body in chunks a trailer."""
        if not self._in_head:
            raise RefusedError(400, "trailers are not taken.")
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise RefusedError(431, _LONG_HEAD)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        version, method = self.parser.get_http_version(), self.parser.get_method()
        check_head(version, method, self.headers)
        if self.parser.should_upgrade():
            # llhttp takes what follows for another protocol, and so the body for the next request.
            raise RefusedError(400, "this server supports HTTP/1.1 without upgrades: send no Upgrade header.")
        self.url = with_path(self.url)
        self.expect_100_continue = self.expect_100_continue and version == "1.1"
        self._in_head = False
        self._wait_for_client()
        self._within(BODY_S)
        if method == b"POST" and not self._answering() and type(self).full():
            self._reject()
        else:
            self._admit()

    def _admit(self) -> None:
        previous, behind = self.cycle, self._answering()
        super().on_headers_complete()
        self._previous = previous
        self.cycle.transport = Outlet(self)  # type: ignore[assignment]
        if self.draining:
            # The last answer on a connection announces its end.
            self.cycle.keep_alive = False
            if behind and not previous.response_started:
                previous.keep_alive = True

    def _reject(self) -> None:
        """Respond with 503 and discard the body."""
        self._last = self.draining or not self.parser.should_keep_alive()
        self.transport.write(busy(self.headers, last=self._last))
        self.cycle = ANSWERED
        type(self).rejected((self.client or ("", 0))[0])

    def on_chunk_header(self) -> None:
        """Another chunk of the body begins."""
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            raise RefusedError(400, f"a body may come in {MAX_CHUNKS} chunks.")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._complete = True
        self._within(None)
        self._waiting.pop(self, None)
        super().on_message_complete()
        self._rest()

    def on_response_complete(self) -> None:
        """The answer is written."""
        if self._lingering:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self._failed is not None and not self._answering():
            self._answer_and_close(self._failed)
            return
        self._feed()
        self._rest()

    def _rest(self) -> None:
        """Where a request and its answer are whole, whichever came last, nothing is going on but the waiting for the next request."""
        if not self._complete or self._answering() or self.ending:
            return
        if self._last:
            self.linger()
            return
        self._wait_for_client()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if self.draining:
            self._end_when_idle()

    def timeout_keep_alive_handler(self) -> None:
        """The connection was kept long enough."""
        if not self._arriving():
            self.linger()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """What llhttp, or a limit above, refused."""
        # httptools hides what a callback raised behind its own error.
        error = sys.exception()
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
        self._refuse(cause if isinstance(cause, RefusedError) else RefusedError(400, "this is not a valid HTTP request."))

    def _refuse(self, error: RefusedError) -> None:
        """Answer and close, after the answers to the requests before; where an answer to this one has begun, only close."""
        if self.pipeline and not self._in_head and not self._complete:
            # The request whose body is wrong waits; those before it are valid.
            self.pipeline.popleft()
            self.cycle, self._complete = self._previous, True  # type: ignore[assignment]
        if self._answering() and (self._in_head or self._complete):
            self._failed = error
            self._within(None)
            return
        if self._answering() and self.cycle.response_started:
            self._abandon()
            self.linger()
            return
        self._abandon()
        self._answer_and_close(error)

    def _abandon(self) -> None:
        """Discard the rest of the response: no client will read it."""
        if self._answering():
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _answer_and_close(self, error: RefusedError) -> None:
        type(self).refused((self.client or ("", 0))[0], error.status)
        self.transport.write(refusal(error))
        self.linger()

    def linger(self) -> None:
        """Lingering close (RFC 9112, 9.6): end the sending side, and discard input until the client closes or ``LINGER_S`` has passed."""
        if self.ending:
            return
        self._lingering, self._active_at = True, self.loop.time()
        self._unread.clear()
        self._waiting.pop(self, None)
        self._unset_keepalive_if_required()
        self._within(LINGER_S)
        if self._ended or not self.transport.can_write_eof():
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
        """The server ends: what is being answered is finished, and what is on its way may still arrive."""
        if self._answering() and not self.cycle.response_started:
            self.cycle.keep_alive = False
        self._end_when_idle()

    def _end_when_idle(self) -> None:
        """Close the connection once it was idle for ``LAST_S``; a request that arrives until then is answered."""
        if self._answering() or not self._complete or self.ending:
            return
        remaining = self._active_at + LAST_S - self.loop.time()
        if remaining > 0:
            self.loop.call_later(remaining, self._end_when_idle)
        elif not self._arriving():
            self.linger()

    def _arriving(self) -> bool:
        """True if the system holds unread bytes of the client. Closing would then reset the connection and lose a request."""
        if self.ending:
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _answering(self) -> bool:
        """Whether a request's answer is not written yet; uvicorn's annotation leaves out that there is no cycle at first."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete
