"""Listening socket: bind before the bundles are loaded, and close without losing connections.

Closing a listening socket resets every connection in its accept queue. The clients of these connections may have sent a request already.
The server therefore stops new handshakes, accepts the queued connections, and then closes the socket.
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

# BPF program (linux/filter.h) that drops TCP segments with SYN and without ACK. Offsets count from the TCP header.
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
# Time for pending handshakes to complete, seconds.
_HANDSHAKES_S = 0.1
_MAX_FAILURES = 20


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to ``host`` and ``port``.

    Raises:
        ConfigError: the port is in use, the address does not belong to this host, or permission is denied.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another --host.") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another --port or --host.") from error
    return listener


async def accept_pending(listener: socket.socket) -> AsyncIterator[socket.socket]:
    """Stop new handshakes on a non-blocking listening socket, and yield the queued connections.

    On Linux, later clients are refused when the socket is closed. Other systems cannot stop handshakes. There, a connection that opens
    between the last accept and the close is reset.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            _stop_handshakes(listener)
            await asyncio.sleep(_HANDSHAKES_S)
    failures = 0
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except ConnectionAbortedError:
            # This client disconnected. Other clients are behind it in the queue.
            continue
        except OSError as error:
            failures += 1
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM) or failures > _MAX_FAILURES:
                return
            # Connections that close meanwhile free descriptors.
            await asyncio.sleep(_HANDSHAKES_S)
            continue
        yield connection


def _stop_handshakes(listener: socket.socket) -> None:
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(_DROP_SYN), ctypes.addressof(program)))
