"""Names of files, folders and labels as text that terminals, JSON files and model formats can represent."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import PurePath

# Python's representation of undecodable bytes in file names (PEP 383).
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Format characters that scripts and emoji need: zero-width non-joiner and joiner.
_JOINERS = "\u200c\u200d"


def printable(text: str | os.PathLike[str]) -> str:
    """Escape control characters and undecodable bytes of ``text``, such as ``\\n`` or ``\\xe9``. The result can be encoded as UTF-8."""
    # POSIX paths: records are the same on Windows.
    name = text.as_posix() if isinstance(text, PurePath) else os.fspath(text)
    if name.isprintable():
        return name
    return "".join(_escaped(character) if _problem_of(character) else character for character in name)


def label_problem(label: str) -> str | None:
    """Return the reason why ``label`` is invalid in an exported format (JSON, XML, protobuf), or none.

    All kinds of spaces are allowed. Tabs, line breaks, control characters, invisible format characters (with which different names look
    equal) and bytes that are not UTF-8 are not allowed.
    """
    if not label.strip():
        return "is empty"
    found = [problem for character in label if (problem := _problem_of(character))]
    return f"has {found[0]}" if found else None


def _problem_of(character: str) -> str | None:
    if character.isprintable() or character in _JOINERS:
        return None
    category = unicodedata.category(character)
    if category == "Zs":
        return None
    names = {"\t": "a tab", "\n": "a line break", "\r": "a line break"}
    kinds = {
        "Cs": "a byte that is not UTF-8",
        "Cc": "a control character",
        "Cf": "an invisible character",
        "Zl": "a line break",
        "Zp": "a line break",
    }
    return names.get(character) or f"{kinds.get(category, 'a character without meaning')} ({_escaped(character)})"


def _escaped(character: str) -> str:
    code = ord(character)
    if _LONE_SURROGATE.match(character) and 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
