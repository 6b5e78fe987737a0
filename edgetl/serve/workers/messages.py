"""IPC messages between the server and its worker processes: a JSON header and bytes, over a socket. Nothing is ever unpickled.

A frame is the header's length and the bytes' length (two little-endian numbers of 8 bytes), the header, the bytes. ``Job`` and ``Done``
have a line of JSON for a header; their bytes are the request's body as it was sent, and the logits.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgetl.serve.protocol.content import Upload
from edgetl.serve.protocol.open_inference import Asked, Wanted

_LENGTHS = struct.Struct("<QQ")
Header = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Request to a worker, for the model at index ``model`` of its list.

    ``deadline`` is on ``time.monotonic``'s clock, which all processes of a machine share.
    """

    model: int
    upload: Upload
    deadline: float


@dataclass(frozen=True)
class Stages:
    """Seconds that a job took: waiting, decoding, preparing, and in the network."""

    queue: float = 0.0
    decode: float = 0.0
    preprocess: float = 0.0
    inference: float = 0.0

    @property
    def computing(self) -> float:
        """All but the waiting."""
        return self.decode + self.preprocess + self.inference


@dataclass(frozen=True)
class Done:
    """Result of a worker: logits float32 ``[n, labels]`` and the requested response, or an HTTP status and its text."""

    logits: NDArray[np.float32] | None = None
    stages: Stages = field(default_factory=Stages)
    status: int = 200
    said: str = ""
    asked: Asked = field(default_factory=Asked)


def pack(header: Header, payload: bytes = b"") -> bytes:
    """A frame's bytes."""
    text = json.dumps(header, ensure_ascii=True, separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(text), len(payload)), text, payload))


def pack_job(number: int, job: Job) -> bytes:
    """A frame that asks for ``job`` under ``number``."""
    upload = {item.name: getattr(job.upload, item.name) for item in fields(Upload) if item.name != "body"}
    return pack({"job": number, "model": job.model, "deadline": job.deadline, "upload": upload}, job.upload.body)


def unpack_job(header: Header, payload: bytes) -> Job:
    """What ``pack_job`` packed."""
    return Job(header["model"], Upload(payload, **header["upload"]), header["deadline"])


def pack_done(number: int, done: Done) -> bytes:
    """A frame that answers job ``number``."""
    header: Header = {"job": number, "status": done.status, "said": done.said, "stages": astuple(done.stages)}
    if done.logits is None:
        return pack(header)
    return pack({**header, "shape": done.logits.shape, "asked": asdict(done.asked)}, done.logits.astype("<f4").tobytes())


def unpack_done(header: Header, payload: bytes) -> Done:
    """What ``pack_done`` packed."""
    stages = Stages(*header["stages"])
    if "shape" not in header:
        return Done(None, stages, header["status"], header["said"])
    asked = Asked(header["asked"]["id"], tuple(Wanted(**item) for item in header["asked"]["outputs"]))
    return Done(np.frombuffer(payload, "<f4").reshape(header["shape"]), stages, header["status"], header["said"], asked)


async def read_frame(reader: asyncio.StreamReader) -> tuple[Header, bytes]:
    """The next frame.

    Raises:
        asyncio.IncompleteReadError: the other side closed the connection, or died.
    """
    text, payload = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    return json.loads(await reader.readexactly(text)), await reader.readexactly(payload)


def receive_frame(stream: BinaryIO) -> tuple[Header, bytes]:
    """The next frame, as ``read_frame``, blocking.

    Raises:
        EOFError: the other side closed the connection, or died.
    """
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        raise EOFError
    text, size = _LENGTHS.unpack(lengths)
    header, payload = stream.read(text), stream.read(size)
    if len(header) < text or len(payload) < size:
        raise EOFError
    return json.loads(header), payload


def channel() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection between two processes of this machine, with room for a tensor on its way."""
    ends = socket.socketpair()
    for end in ends:
        for side in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, side, 1_000_000)
    return ends
