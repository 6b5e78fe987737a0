"""Standard input source: names of image files, one per line, or images with their length."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Literal

from edgetl.core.files.names import printable
from edgetl.core.images.decode import MAX_FILE_BYTES
from edgetl.device.runner.sources.frame import Frame, Frames
from edgetl.device.runner.waiting import POLL_S, Stop
from edgetl.errors import DataError, ImageError

Form = Literal["names", "images"]

MAX_NAME_BYTES = 4096  # PATH_MAX of Linux
# Length of an image: unsigned 32-bit integer, little-endian, as in BYTES tensors of the Open Inference Protocol.
LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 16


class StandardInput:
    """Images from a pipe or a file on a descriptor.

    The form ``names`` is one path per line. The form ``images`` is, for each image, its length (4 bytes, unsigned, little-endian) and its
    encoded bytes. Names that have no record when the process ends were not accepted.

    Args:
        descriptor: descriptor to read, 0 for standard input.
        form: ``names`` or ``images``.
        stop: stop request.
    """

    def __init__(self, descriptor: int, *, form: Form, stop: Stop) -> None:
        self.name = "-"
        self.dropped = self.missing = 0
        self.problem = ""
        self._descriptor, self._form, self._stop = descriptor, form, stop
        self._buffer = bytearray()
        self._ended = False
        self._count = 0

    def frames(self) -> Frames:
        """Yield the images, and none while no complete one has arrived.

        Raises:
            DataError: a length or a name is larger than its limit.
        """
        while not self._stop.requested:
            frame = self._next()
            if frame is not None:
                yield frame
            elif self._ended:
                return
            elif self._stop.wait(POLL_S, self._descriptor):
                data = os.read(self._descriptor, _READ_BYTES)
                self._ended = not data
                self._buffer += data
            else:
                yield None

    def finish(self, frame: Frame) -> None:
        """Do nothing: the sender owns the images."""

    def _next(self) -> Frame | None:
        """Take one image from the buffer; none if no complete one is there."""
        frame = self._next_name() if self._form == "names" else self._next_image()
        self._count += frame is not None
        return frame

    def _next_name(self) -> Frame | None:
        while self._buffer:
            line, newline, rest = self._buffer.partition(b"\n")
            if len(line) > MAX_NAME_BYTES:
                raise DataError(
                    f"line {self._count + 1} of standard input has more than {MAX_NAME_BYTES} bytes. Send one file name per line, or "
                    f"images with --stdin images."
                )
            if not (newline or self._ended):
                return None
            self._buffer = rest
            if name := line.removesuffix(b"\r"):
                path = Path(os.fsdecode(bytes(name)))
                return Frame(printable(path), path)
        return None

    def _next_image(self) -> Frame | None:
        name = f"image {self._count + 1}"
        if len(self._buffer) < LENGTH.size:
            return self._cut_off(name, LENGTH.size) if self._ended and self._buffer else None
        (length,) = LENGTH.unpack_from(self._buffer)
        if length > MAX_FILE_BYTES:
            raise DataError(
                f"{name} of standard input has a length of {length:,} bytes. The limit is {MAX_FILE_BYTES:,}. Send the length as 4 bytes, "
                f"little-endian, and then exactly that many bytes."
            )
        end = LENGTH.size + length
        if len(self._buffer) < end:
            return self._cut_off(name, end) if self._ended else None
        image = bytes(self._buffer[LENGTH.size : end])
        del self._buffer[:end]
        return Frame(name, image)

    def _cut_off(self, name: str, expected: int) -> Frame:
        found = len(self._buffer)
        self._buffer.clear()
        return Frame(name, ImageError(f"standard input ended after {found:,} of {expected:,} bytes of {name}. Send complete images."))
