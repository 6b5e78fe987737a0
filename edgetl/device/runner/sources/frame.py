"""Frames and the interface of a source.

A frame is **accepted** when the runner takes it from its source. Each accepted frame gets one record in every sink. A live source (camera,
network stream) drops frames that arrive while the runner is busy, before they are accepted. A folder, a video file and standard input wait
instead: they drop nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ImageError


@dataclass(frozen=True)
class Frame:
    """Image of a source.

    Attributes:
        name: path of a file, or the name of the source with the number of the frame.
        image: path of a file, encoded bytes, or an RGB array uint8 ``[H, W, 3]``; or the error of an image that could not be received.
        path: file that ``Source.finish`` deletes or moves, or none.
    """

    name: str
    image: Path | bytes | NDArray[np.uint8] | ImageError
    path: Path | None = None


# Frames of a source; none while there is no new one.
Frames: TypeAlias = Generator[Frame | None, None, None]


class Source(Protocol):
    """Source of frames.

    Attributes:
        name: text of ``--source``.
        dropped: frames of a live source that were replaced by a later one before the runner was free.
        missing: files of a folder that disappeared between the listing and the reading.
        problem: reason why the source gives no frames at present; empty if it works.
    """

    name: str
    dropped: int
    missing: int
    problem: str

    def frames(self) -> Frames:
        """Yield the frames, and none at least every ``POLL_S`` seconds without one. End at the end of the source, or after a stop request.

        Raises:
            DataError: the source cannot be read and does not return.
        """

    def finish(self, frame: Frame) -> None:
        """Handle a frame after all sinks have its record."""
