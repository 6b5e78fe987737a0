"""Listening socket: bound before anything is loaded, and closed without losing connections that clients consider open.

Closing a listening socket resets every connection in its accept queue, although its client is connected and may have sent a request.
So the server first stops new handshakes, then accepts the connections in the queue, and then closes the socket.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

from edgetl.errors import ConfigError

# From linux/filter.h: a program that drops TCP segments with SYN and without ACK; a filter of a TCP socket sees them from the TCP header.
_SO_ATTACH_FILTER = 26
_LOAD_BYTE, _AND, _JUMP_EQUAL, _RETURN = 0x30, 0x54, 0x15, 0x06
_FLAGS_AT, _SYN, _ACK = 13, 0x02, 0x10
_DROP_SYN = (
    (_LOAD_BYTE, 0, 0, _FLAGS_AT),
    (_AND, 0, 0, _SYN | _ACK),
    (_JUMP_EQUAL, 0, 1, _SYN),
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, 0xFFFF_FFFF),
)
# Seconds within which pending handshakes end.
_HANDSHAKES_S = 0.1
_MAX_FAILURES = 20


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, before anything is loaded.

    Raises:
        ConfigError: the port is taken, the host is not this machine's, or there is no permission.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another --host.") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(where)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another --port or --host.") from error
    return listener


async def accept_last(listener: socket.socket) -> AsyncIterator[socket.socket]:
    """Stop new handshakes on a non-blocking listening socket, and yield the connections that clients believe to be open.

    On Linux a client that connects from now on is refused when the socket is closed. Elsewhere handshakes cannot be stopped, and a
    connection that is made between the last accept and the close is reset.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            _stop_handshakes(listener)
            await asyncio.sleep(_HANDSHAKES_S)
    failures = 0
    while True:
        try:
            accepted, _ = listener.accept()
        except BlockingIOError:
            return
        except ConnectionAbortedError:
            # This client disconnected; others wait behind it.
            continue
        except OSError as error:
            failures += 1
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM) or failures > _MAX_FAILURES:
                return
            # Closing connections frees descriptors.
            await asyncio.sleep(_HANDSHAKES_S)
            continue
        yield accepted


def _stop_handshakes(listener: socket.socket) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(_DROP_SYN), ctypes.addressof(code)))
