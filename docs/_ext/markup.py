"""Text of the code as Markdown."""

from __future__ import annotations

import re

_CODE = re.compile(r"(`[^`]+`)")
_SPECIAL = re.compile(r"([\\*_<>\[\]#])")
_ATTRIBUTES = re.compile(r"^\{\.[^}\n]*\}\n", re.MULTILINE)
_PROGRAM = re.compile(r"^```\{program\}.*\n```\n\n?", re.MULTILINE)
_RUBRIC = re.compile(r"^```\{rubric\} (.*)\n```$", re.MULTILINE)
_ITEM = re.compile(r"^````\{option\} (?P<label>.*)\n(?P<text>[^`]*(?:`[^`]+`[^`]*)*?)\n````\n\n?", re.MULTILINE)
_ITEMS = re.compile(rf"(?:{_ITEM.pattern})+".replace("?P<label>", "").replace("?P<text>", ""), re.MULTILINE)
_OPTION = re.compile(r"(?<![\w`-])(--[a-z][a-z0-9-]*)")


def plain_text(text: str) -> str:
    """Return plain text, or a docstring, as one line of Markdown. Code in backticks stays, options become code."""
    parts = _CODE.split(" ".join(text.replace("``", "`").split()))
    return "".join(part if part.startswith("`") else _OPTION.sub(r"`\1`", _SPECIAL.sub(r"\\\1", part)) for part in parts)


def table(header: list[str], rows: list[list[str]], classes: str = ".stacked") -> str:
    """Return a table, which on a phone becomes one block per row (site.css). A bar in a cell is escaped."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    return "\n".join([f"{{{classes}}}", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def plain_markdown(text: str) -> str:
    """Return ``text`` without directives and attributes of MyST, so that every Markdown viewer shows it. Options become tables."""
    text = _PROGRAM.sub("", _ATTRIBUTES.sub("", text)).replace("```console", "```text")
    return _ITEMS.sub(_items, _RUBRIC.sub(r"**\1**", text))


def _items(match: re.Match[str]) -> str:
    rows = [[f"`{item['label']}`", " ".join(item["text"].split())] for item in _ITEM.finditer(match.group())]
    return table(["Name", "Description"], rows, "").removeprefix("{}\n") + "\n"
