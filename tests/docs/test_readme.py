from __future__ import annotations

import re
from typing import Any

import typer.main

from edgetl.cli.app import app
from tests.docs.pages import ROOT

README = (ROOT / "README.md").read_text("utf-8")
MAX_WORDS = 700
MAX_WORDS_BEFORE_COMMAND = 70


def _prose(text: str) -> list[str]:
    """Words of the text without code blocks, tables, HTML tags and the targets of links."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"<[^>]+>", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.findall(r"\w[\w.,'/-]*", text)


def test_readme_is_short() -> None:
    assert len(_prose(README)) <= MAX_WORDS


def test_readme_begins_with_a_picture_and_a_command() -> None:
    before, fence, _ = README.partition("```console")
    assert fence and len(_prose(before)) <= MAX_WORDS_BEFORE_COMMAND and "<picture>" in before


def test_pictures_of_readme_exist() -> None:
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', README)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)


def test_readme_lists_every_command() -> None:
    group: Any = typer.main.get_command(app)
    visible = {name for name, command in group.commands.items() if not command.hidden}
    rows = re.findall(r"^\| (`edgetl [^|]*) \|", README, flags=re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(?:edgetl )?([\w-]+)`", row)}
    assert visible - listed == set()
