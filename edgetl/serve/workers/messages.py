"""IPC messages between the server and its worker processes: a JSON header and bytes, over a socket. Nothing is ever unpickled.

A message is the header's length and the bytes' length (two little-endian numbers of 8 bytes), the header, the bytes. ``Job`` and ``Result``
have a line of JSON for a header; their bytes are the request's body as it was sent, and the logits.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgetl.serve.protocol.content import Upload
from edgetl.serve.protocol.open_inference import RequestedOutput, ResponseSpec

_LENGTHS = struct.Struct("<QQ")
Header = dict[str, Any]


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration of a worker process: bundles and inference settings.

    Attributes:
        bundles: as paths; links are followed once, so that a replaced worker loads the same bundles.
        variant: of every bundle; none is the first whose engine is installed.
        threads: jobs computed at once in a worker, each by one thread.
        batch: images of different requests computed together, at most; 0 measures at the start whether that pays.
        body_bytes: largest body of a request; each job may hold one.
    """

    bundles: tuple[Path, ...]
    variant: str | None = None
    threads: int = 1
    batch: int = 0
    body_bytes: int = 16_000_000


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
        """Seconds without the waiting."""
        return self.decode + self.preprocess + self.inference


@dataclass(frozen=True)
class Result:
    """Result of a worker: logits float32 ``[n, labels]`` and the requested response, or an HTTP status and its text."""

    logits: NDArray[np.float32] | None = None
    stages: Stages = field(default_factory=Stages)
    status: int = 200
    message: str = ""
    response: ResponseSpec = field(default_factory=ResponseSpec)


def pack(header: Header, payload: bytes = b"") -> bytes:
    """Bytes of a message."""
    text = json.dumps(header, ensure_ascii=True, separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(text), len(payload)), text, payload))


def pack_config(config: WorkerConfig) -> bytes:
    """Message with the configuration, the first that a worker gets."""
    return pack({**asdict(config), "bundles": [str(path) for path in config.bundles]})


def unpack_config(header: Header) -> WorkerConfig:
    """The inverse of ``pack_config``."""
    return WorkerConfig(**{**header, "bundles": tuple(map(Path, header["bundles"]))})


def pack_job(number: int, job: Job) -> bytes:
    """Message with ``job`` under ``number``."""
    upload = {item.name: getattr(job.upload, item.name) for item in fields(Upload) if item.name != "body"}
    return pack({"job": number, "model": job.model, "deadline": job.deadline, "upload": upload}, job.upload.body)


def unpack_job(header: Header, payload: bytes) -> Job:
    """The inverse of ``pack_job``."""
    return Job(header["model"], Upload(payload, **header["upload"]), header["deadline"])


def pack_result(number: int, done: Result) -> bytes:
    """Message with the result of job ``number``."""
    header: Header = {"job": number, "status": done.status, "message": done.message, "stages": astuple(done.stages)}
    if done.logits is None:
        return pack(header)
    return pack({**header, "shape": done.logits.shape, "response": asdict(done.response)}, done.logits.astype("<f4").tobytes())


def unpack_result(header: Header, payload: bytes) -> Result:
    """The inverse of ``pack_result``."""
    stages = Stages(*header["stages"])
    if "shape" not in header:
        return Result(None, stages, header["status"], header["message"])
    response = ResponseSpec(header["response"]["id"], tuple(RequestedOutput(**item) for item in header["response"]["outputs"]))
    return Result(np.frombuffer(payload, "<f4").reshape(header["shape"]), stages, header["status"], header["message"], response)


async def read_message(reader: asyncio.StreamReader) -> tuple[Header, bytes]:
    """The next message.

    Raises:
        asyncio.IncompleteReadError: the other side closed the connection, or died.
    """
    text, payload = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    return json.loads(await reader.readexactly(text)), await reader.readexactly(payload)


def receive_message(stream: BinaryIO) -> tuple[Header, bytes]:
    """The next message, as ``read_message``, blocking.

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
