"""JPEG scans: detect from the header whether the decoder keeps the coefficients of the whole image in memory."""

from __future__ import annotations

_START_OF_SCAN = 0xDA
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_WITHOUT_LENGTH = frozenset({0x01, 0xFF, *range(0xD0, 0xD9)})


def has_several_scans(data: bytes) -> bool:
    """Return true for a JPEG file that is progressive, or that stores each component in its own scan.

    libjpeg decodes other files row by row. For these files it keeps two bytes for each coefficient of the image, which scaling does not
    reduce (libjpeg-turbo, ``jdmaster.c``: ``has_multiple_scans``). The result is also true for a truncated header.
    """
    place, components = 2, 0
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return True
        marker = data[place + 1]
        if marker in _WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in _PROGRESSIVE:
            return True
        if marker in _FRAMES:
            components = data[place + 9] if place + 9 < len(data) else 0
        if marker == _START_OF_SCAN:
            return place + 4 >= len(data) or data[place + 4] != components
        place += 2 + length
    return True
