"""Video sources with OpenCV: a file frame by frame, and a camera or network stream with its latest frame."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from edgetl.core.files.names import printable
from edgetl.core.system.host import available_cores
from edgetl.device.runner.sources.frame import Frame, Frames
from edgetl.device.runner.waiting import POLL_S, Backoff, Stop
from edgetl.errors import DataError

logger = logging.getLogger("edgetl.run")

# Limit for opening a stream and for each frame, ms. OpenCV's FFmpeg backend waits 30 s by default.
_TIMEOUT_MS = 5000
# A video file with fewer frames than this ratio of the number in its header is reported. Some formats estimate the number.
_COMPLETE = 0.9


class VideoFile:
    """Frames of a video file, in order. None is dropped.

    Args:
        path: video file.
        loop: start again after the last frame.
        stop: stop request.
    """

    def __init__(self, path: Path, *, loop: bool, stop: Stop) -> None:
        self.name = str(path)
        self.dropped = self.missing = 0
        self.problem = ""
        self._path, self._loop, self._stop = path, loop, stop

    def frames(self) -> Frames:
        """Yield the frames as RGB arrays uint8 ``[H, W, 3]``.

        Raises:
            DataError: OpenCV cannot read the file.
        """
        while True:
            capture, number = cv2.VideoCapture(str(self._path)), 0
            expected = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            try:
                while not self._stop.requested and (pixels := _read(capture)) is not None:
                    number += 1
                    yield Frame(f"{printable(self._path)}#{number}", pixels)
            finally:
                capture.release()
            if self._stop.requested:
                return
            if number == 0:
                raise DataError(f"{printable(self._path)} is not a video that OpenCV can read. Convert it, for instance to H.264 in MP4.")
            if number < _COMPLETE * expected:
                logger.warning("%s: %d of about %.0f frames can be read. The file is damaged.", printable(self._path), number, expected)
            if not self._loop:
                return

    def finish(self, frame: Frame) -> None:
        """Do nothing: the file stays."""


class LiveVideo:
    """Latest frame of a camera or a network stream. A thread reads all frames, so that none of them waits in a buffer.

    A camera that disappears is opened again with back-off.

    Args:
        address: number of a camera, or the URL or device path of a stream.
        stop: stop request.
    """

    def __init__(self, address: int | str, *, stop: Stop) -> None:
        self.name = without_password(str(address))
        self.dropped = self.missing = 0
        self.problem = ""
        self._address, self._stop = address, stop
        self._arrived = threading.Condition()
        self._latest: Frame | None = None
        self._ended = threading.Event()

    def frames(self) -> Frames:
        """Yield the latest frame as an RGB array uint8 ``[H, W, 3]``, and none while there is no new one."""
        thread = threading.Thread(target=self._read_all, name="camera", daemon=True)
        thread.start()
        try:
            while not self._stop.requested:
                with self._arrived:
                    if self._latest is None:
                        self._arrived.wait(POLL_S)
                    frame, self._latest = self._latest, None
                yield frame
        finally:
            self._ended.set()
            thread.join(2 * _TIMEOUT_MS / 1000)

    def finish(self, frame: Frame) -> None:
        """Do nothing: the frame is not on a disk."""

    def _read_all(self) -> None:
        number, backoff = 0, Backoff()
        while not self._ended.is_set():
            capture = _open(self._address)
            try:
                while not self._ended.is_set() and (pixels := _read(capture)) is not None:
                    number += 1
                    self.problem = ""
                    backoff.reset()
                    with self._arrived:
                        self.dropped += self._latest is not None
                        self._latest = Frame(f"{self.name}#{number}", pixels)
                        self._arrived.notify()
            finally:
                capture.release()
            if not self._ended.is_set():
                self.problem = f"{self.name} gives no images"
                pause = backoff.next()
                logger.warning("%s. Next attempt in %.0f s.", self.problem, pause)
                self._ended.wait(pause)


def without_password(address: str) -> str:
    """Return a URL without user name and password, for records and messages."""
    url = urlsplit(address)
    return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2])) if url.netloc else address


def _open(address: int | str) -> cv2.VideoCapture:
    if isinstance(address, int):
        return cv2.VideoCapture(address)
    if "://" not in address:
        return cv2.VideoCapture(address, cv2.CAP_V4L2)
    limits = {
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: _TIMEOUT_MS,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC: _TIMEOUT_MS,
        cv2.CAP_PROP_N_THREADS: available_cores(),  # FFmpeg does not know the CPU quota
    }
    return cv2.VideoCapture(address, cv2.CAP_FFMPEG, [number for pair in limits.items() for number in pair])


def _read(capture: cv2.VideoCapture) -> NDArray[np.uint8] | None:
    """Return the next frame, RGB; none at the end or without a connection."""
    try:
        found, pixels = capture.read()
        return np.ascontiguousarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8) if found else None
    except cv2.error as error:
        logger.warning("OpenCV: %s", str(error).strip())
        return None
