"""Pages of the documentation: Markdown files, their code blocks and the instructions for tests in HTML comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [path for path in PAGES if path.is_file() and "_build" not in path.parts]

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[^\s`]*)")
_COMMENT = re.compile(r"^\s*<!-- test: (?P<key>[a-z]+) ?(?P<value>.*?) -->\s*$")


@dataclass(frozen=True)
class Block:
    """Code block of a page.

    Attributes:
        line: number of the opening fence, from 1.
        language: first word after the fence, such as ``bash``; a directive of MyST has braces.
        notes: the comments ``<!-- test: KEY VALUE -->`` directly above the block.
    """

    page: Path
    line: int
    language: str
    text: str
    notes: dict[str, str]

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_slow(self) -> bool:
        """True if only the slow tests run the block."""
        return "slow" in self.notes


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of ``page`` in order."""
    return list(_blocks(page))


def notes_of(page: Path) -> dict[str, str]:
    """Return the comments ``<!-- test: KEY VALUE -->`` of ``page`` that are above no block."""
    found = {}
    for line in page.read_text("utf-8").splitlines():
        if (comment := _COMMENT.match(line)) and comment["key"] == "with":
            found[comment["key"]] = comment["value"]
    return found


def _blocks(page: Path) -> Iterator[Block]:
    lines = iter(enumerate(page.read_text("utf-8").splitlines(), 1))
    notes: dict[str, str] = {}
    for number, line in lines:
        if comment := _COMMENT.match(line):
            notes[comment["key"]] = comment["value"]
        elif opening := _FENCE.match(line):
            text = []
            for _, inner in lines:
                if inner.strip() == opening["fence"]:
                    break
                text.append(inner.removeprefix(opening["indent"]))
            yield Block(page, number, opening["language"], "\n".join(text) + "\n", notes)
            notes = {}
        elif line.strip():
            notes = {}
