"""JPEG scans: find from the header whether a decoder has to hold the coefficients of the whole image."""

from __future__ import annotations

_START_OF_SCAN = 0xDA
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_WITHOUT_LENGTH = frozenset({0x01, 0xFF, *range(0xD0, 0xD9)})


def has_several_scans(data: bytes) -> bool:
    """Return true for a JPEG file that is progressive, or that stores each component by itself.

    libjpeg decodes other files row by row; of these it keeps two bytes for each coefficient of the image (libjpeg-turbo,
    ``jdmaster.c``: ``has_multiple_scans``), which scaling does not reduce. A header that ends early counts as several.
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
