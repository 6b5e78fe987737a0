"""Galleries of a data audit: small images of the findings, decoded when they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias
from xml.etree.ElementTree import Element

from edgetl.core.images.decode import load_image
from edgetl.errors import ImageError
from edgetl.report.elements import element, paragraph
from edgetl.report.images import data_uri, thumbnail

# Longest side of an image in pixels, number of entries that are open and that are folded, and of images in an entry.
_SIDE = 144
MOST_OPEN, MOST_FOLDED, MOST_IMAGES = 24, 200, 4
# Files of the images of an entry, its title, and lines of text.
Entry: TypeAlias = tuple[Sequence[str], str, Sequence[str]]


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
        self._folded: list[tuple[Element, Sequence[Entry]]] = []

    def gallery(self, entries: Iterable[Entry], *, narrow: bool = False) -> list[Element]:
        """Return a gallery of the first entries, and the others in a folded part.

        Args:
            entries: entries, the most important first.
            narrow: use narrow columns, for entries of one image.
        """
        shown = list(entries)
        first = element("ul", [self._entry(*entry) for entry in shown[:MOST_OPEN]], class_=_class(narrow=narrow))
        rest = shown[MOST_OPEN:]
        return [first, self.folded(f"{len(rest):,} more", rest, narrow=narrow)] if rest else [first]

    def folded(self, title: str, entries: Sequence[Entry], *, narrow: bool = False) -> Element:
        """Return a folded gallery. ``fill`` adds its images, so that the open galleries of the page have priority."""
        content = element("ul", class_=_class(narrow=narrow))
        self._folded.append((content, entries[:MOST_FOLDED]))
        more = len(entries) - MOST_FOLDED
        note = paragraph(f"{more:,} more are not shown. --json lists all.", class_="note") if more > 0 else None
        return element("details", element("summary", title), content, note)

    def fill(self) -> None:
        """Add the entries of the folded galleries."""
        for content, entries in self._folded:
            content.extend(self._entry(*entry) for entry in entries)
        self._folded.clear()

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


def _class(*, narrow: bool) -> str:
    return "gallery narrow" if narrow else "gallery"
