"""Sphinx extension: replace comments ``<!-- generated: NAME ARGUMENTS -->`` of a page by Markdown that is generated from the code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli_reference
import tables
from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

_COMMENT = re.compile(r"^<!-- generated: (?P<name>[a-z-]+) ?(?P<arguments>.*?) -->$", re.MULTILINE)
GENERATORS: dict[str, Callable[..., str]] = {
    "commands": cli_reference.commands,
    "config": tables.config,
    "exit-codes": tables.exit_codes,
    "fields": tables.fields,
    "metrics": tables.metrics,
    "routes": tables.routes,
}


def expand(text: str) -> str:
    """Return ``text`` with each comment replaced."""
    return _COMMENT.sub(lambda match: GENERATORS[match["name"]](*match["arguments"].split()), text)


def _read(_app: Sphinx, _page: str, source: list[str]) -> None:
    source[0] = expand(source[0])


def _outdated(_app: Sphinx, env: BuildEnvironment, *_changes: set[str]) -> list[str]:
    """Return the pages with generated parts: the code may have changed since the last build."""
    return [page for page in env.found_docs if "<!-- generated:" in Path(env.doc2path(page)).read_text("utf-8")]


def _draw_dashes(_app: Sphinx, tree: nodes.document) -> None:
    """Replace the two hyphens between a parameter and its description by a dash."""
    for text in list(tree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the extension."""
    app.connect("source-read", _read)
    app.connect("env-get-outdated", _outdated)
    app.connect("doctree-read", _draw_dashes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
