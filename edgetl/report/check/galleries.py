"""Galleries of a data audit: small images of the findings, decoded when they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from edgetl.core.images.decode import load_image
from edgetl.errors import ImageError
from edgetl.report.elements import element
from edgetl.report.images import data_uri, thumbnail

# Longest side of an image in pixels, and largest number of entries and of images in an entry.
_SIDE = 144
MOST_ENTRIES, MOST_IMAGES = 24, 4


class Galleries:
    """Maker of galleries with a limit on the size of all images.

    Attributes:
        left_out: number of images that the limit left out.
    """

    def __init__(self, files: dict[str, Path], limit_bytes: int) -> None:
        self.left_out = 0
        self._files = files
        self._free = limit_bytes
        self._small: dict[str, bytes] = {}

    def gallery(self, entries: Iterable[tuple[Sequence[str], str, Sequence[str]]]) -> Element:
        """Return a gallery. An entry has the files of its images, a title, and lines of text. The first entries are shown."""
        shown = list(entries)[:MOST_ENTRIES]
        return element("ul", [self._entry(*entry) for entry in shown], class_="gallery")

    def _entry(self, files: Sequence[str], title: str, lines: Sequence[str]) -> Element:
        images = [self._image(name) for name in files[:MOST_IMAGES]]
        texts = [element("span", line, class_="file") for line in lines]
        return element("li", element("div", images, class_="images"), element("strong", title), texts)

    def _image(self, name: str) -> Element | None:
        try:
            jpeg = self._small.get(name) or thumbnail(load_image(self._files[name]), _SIDE)
        except ImageError:  # changed since the scan
            return None
        self._small[name] = jpeg
        if len(jpeg) > self._free:
            self.left_out += 1
            return None
        self._free -= len(jpeg)
        return element("img", src=data_uri(jpeg), alt=name)
