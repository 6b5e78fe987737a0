"""Text of the code as Markdown."""

from __future__ import annotations

import re

_CODE = re.compile(r"(`[^`]+`)")
_SPECIAL = re.compile(r"([\\*_<>\[\]#])")
_OPTION = re.compile(r"(?<![\w`-])(--[a-z][a-z0-9-]*)")


def plain_text(text: str) -> str:
    """Return plain text, or a docstring, as one line of Markdown. Code in backticks stays, options become code."""
    parts = _CODE.split(" ".join(text.replace("``", "`").split()))
    return "".join(part if part.startswith("`") else _OPTION.sub(r"`\1`", _SPECIAL.sub(r"\\\1", part)) for part in parts)


def table(header: list[str], rows: list[list[str]], classes: str = ".stacked") -> str:
    """Return a table, which on a phone becomes one block per row (site.css). A bar in a cell is escaped."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    return "\n".join([f"{{{classes}}}", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"
