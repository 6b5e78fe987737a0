"""IPC messages between the server and its worker processes. They contain JSON and bytes, never pickled objects.

Format of a message: length of the header and of the payload (two little-endian integers of 8 bytes each), JSON header, payload. The payload
of ``Job`` is the request body as received. The payload of ``Result`` is the logits.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgetl.core.system.execution import Choice
from edgetl.serve.protocol.content import Upload
from edgetl.serve.protocol.open_inference import RequestedOutput, ResponseSpec

DEADLINE_PASSED = "the deadline passed before the computation began. Send the request later, or raise its deadline."
_LENGTHS = struct.Struct("<QQ")
Header = dict[str, Any]


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration of a worker process: bundles and inference settings.

    Attributes:
        bundles: resolved paths, so a replacement worker loads the same bundles.
        choices: variant, threads per inference and execution setting of each bundle.
        galleries: path and SHA-256 of the gallery of each bundle; none for a bundle without one.
        threads: number of jobs computed at the same time.
        batch: largest batch of images from several requests. 0 measures at the start whether batches are faster.
        body_bytes: largest request body, bytes.
        statistics: compute the image statistics that drift detection needs.
    """

    bundles: tuple[Path, ...]
    choices: tuple[Choice, ...]
    galleries: tuple[tuple[str, str] | None, ...]
    threads: int = 1
    batch: int = 0
    body_bytes: int = 16_000_000
    statistics: bool = False


@dataclass(frozen=True)
class Job:
    """Job of a worker: one request for the model at index ``model``.

    ``deadline`` is a time of ``time.monotonic``, a clock that all processes of a host share.
    """

    model: int
    upload: Upload
    deadline: float


@dataclass(frozen=True)
class Stages:
    """Durations of a job's stages, seconds: queue, decoding, preprocessing, inference."""

    queue: float = 0.0
    decode: float = 0.0
    preprocess: float = 0.0
    inference: float = 0.0

    @property
    def computing(self) -> float:
        """Duration without the queue, seconds."""
        return self.decode + self.preprocess + self.inference


@dataclass(frozen=True)
class Result:
    """Result of a job: logits, float32 ``[n, labels]``, and the requested response, or an HTTP status and error message.

    ``image_statistics`` has a row for each image, if ``WorkerConfig.statistics`` is set. ``encoded`` is true for requests with encoded
    images, and false for tensors. ``image_s`` is the duration of the inference per image, seconds. ``engine_failed`` is true after an
    error of the engine that is not a lack of memory.
    """

    logits: NDArray[np.float32] | None = None
    stages: Stages = field(default_factory=Stages)
    status: int = 200
    message: str = ""
    response: ResponseSpec = field(default_factory=ResponseSpec)
    image_statistics: tuple[tuple[float, ...], ...] = ()
    encoded: bool = False
    image_s: float = 0.0
    engine_failed: bool = False


def pack(header: Header, payload: bytes = b"") -> bytes:
    """Pack a message into bytes."""
    text = json.dumps(header, ensure_ascii=True, separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(text), len(payload)), text, payload))


def pack_config(config: WorkerConfig) -> bytes:
    """Pack the configuration. It is the first message to a worker."""
    choices = [choice.model_dump() for choice in config.choices]
    return pack({**asdict(replace(config, choices=())), "bundles": [str(path) for path in config.bundles], "choices": choices})


def unpack_config(header: Header) -> WorkerConfig:
    """Unpack a message of ``pack_config``."""
    choices = tuple(map(Choice.model_validate, header["choices"]))
    galleries = tuple(tuple(item) if item else None for item in header["galleries"])
    return WorkerConfig(**{**header, "bundles": tuple(map(Path, header["bundles"])), "choices": choices, "galleries": galleries})


def pack_job(number: int, job: Job) -> bytes:
    """Pack ``job`` with its number."""
    upload = {item.name: getattr(job.upload, item.name) for item in fields(Upload) if item.name != "body"}
    return pack({"job": number, "model": job.model, "deadline": job.deadline, "upload": upload}, job.upload.body)


def unpack_job(header: Header, payload: bytes) -> Job:
    """Unpack a message of ``pack_job``."""
    return Job(header["model"], Upload(payload, **header["upload"]), header["deadline"])


def pack_result(number: int, result: Result) -> bytes:
    """Pack the result of job ``number``."""
    header: Header = {"job": number, "status": result.status, "message": result.message, "stages": astuple(result.stages)}
    if result.logits is None:
        return pack({**header, "engine_failed": result.engine_failed})
    header |= {"image_statistics": result.image_statistics, "encoded": result.encoded, "image_s": result.image_s}
    return pack({**header, "shape": result.logits.shape, "response": asdict(result.response)}, result.logits.astype("<f4").tobytes())


def unpack_result(header: Header, payload: bytes) -> Result:
    """Unpack a message of ``pack_result``."""
    stages = Stages(*header["stages"])
    if "shape" not in header:
        return Result(None, stages, header["status"], header["message"], engine_failed=header["engine_failed"])
    response = ResponseSpec(header["response"]["id"], tuple(RequestedOutput(**item) for item in header["response"]["outputs"]))
    return Result(
        np.frombuffer(payload, "<f4").reshape(header["shape"]),
        stages,
        header["status"],
        header["message"],
        response,
        tuple(map(tuple, header["image_statistics"])),
        header["encoded"],
        header["image_s"],
    )


async def read_message(reader: asyncio.StreamReader) -> tuple[Header, bytes]:
    """Read the next message.

    Raises:
        asyncio.IncompleteReadError: the peer closed the connection or crashed.
    """
    text, payload = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    return json.loads(await reader.readexactly(text)), await reader.readexactly(payload)


def receive_message(stream: BinaryIO) -> tuple[Header, bytes]:
    """Read the next message, blocking.

    Raises:
        EOFError: the peer closed the connection or crashed.
    """
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        raise EOFError
    text, size = _LENGTHS.unpack(lengths)
    header, payload = stream.read(text), stream.read(size)
    if len(header) < text or len(payload) < size:
        raise EOFError
    return json.loads(header), payload


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a socket pair, with buffers for one tensor."""
    ends = socket.socketpair()
    for end in ends:
        for side in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, side, 1_000_000)
    return ends
