"""Capture of a photo: camera and time from EXIF."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from PIL import Image

_MAKE, _MODEL, _DETAILS = 0x010F, 0x0110, 0x8769
_TAKEN, _FRACTION, _SERIAL = 0x9003, 0x9291, 0xA431


class Capture(NamedTuple):
    """Camera and time of a photo.

    Attributes:
        camera: make, model and serial number of the body; empty if the file has none.
        taken: time of the exposure by the clock of the camera, seconds since 1970 without a time zone.
    """

    camera: str
    taken: float


def read_capture(exif: Image.Exif) -> Capture | None:
    """Return the capture of a photo; none without a valid time (EXIF 3.0, tags DateTimeOriginal and BodySerialNumber).

    Raises:
        Exception: the block is damaged. Pillow raises many classes; ``edgetl.core.images.decode`` knows them.
    """
    details = exif.get_ifd(_DETAILS)
    try:
        moment = datetime.strptime(str(details[_TAKEN]).strip("\0 "), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except (KeyError, ValueError):
        return None
    digits = str(details.get(_FRACTION, "")).strip("\0 ")
    fraction = float(f"0.{digits}") if digits.isascii() and digits.isdigit() else 0.0
    words = (str(value).strip("\0 ") for value in (exif.get(_MAKE), exif.get(_MODEL), details.get(_SERIAL)) if value)
    return Capture(" ".join(word for word in words if word), moment.timestamp() + fraction)
