"""Generated parts of pages, between the comments ``<!-- generated: NAME ARGUMENTS -->`` and ``<!-- end of generated -->``.

The parts are committed in plain Markdown, so that they can be read without the site. ``make docs`` rewrites them. The Sphinx extension
replaces them by a form with directives of MyST, which have anchors and styles.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli_reference
import tables
from docutils import nodes
from markup import plain_markdown

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

END = "<!-- end of generated -->"
_PART = re.compile(rf"^(?P<begin><!-- generated: (?P<name>[a-z-]+) ?(?P<arguments>.*?) -->)\n.*?^{END}$", re.MULTILINE | re.DOTALL)
DOCS = Path(__file__).parents[1]
GENERATORS: dict[str, Callable[..., str]] = {
    "commands": cli_reference.commands,
    "config": tables.config,
    "exit-codes": tables.exit_codes,
    "fields": tables.fields,
    "metrics": tables.metrics,
    "routes": tables.routes,
}


def expand(text: str) -> str:
    """Return ``text`` with each generated part in the form of the site."""
    return _PART.sub(_generate, text)


def refresh(text: str) -> str:
    """Return ``text`` with each generated part in the committed form."""
    return _PART.sub(lambda match: f"{match['begin']}\n\n{plain_markdown(_generate(match)).strip()}\n\n{END}", text)


def _generate(match: re.Match[str]) -> str:
    return GENERATORS[match["name"]](*match["arguments"].split())


def pages() -> list[Path]:
    """Return the pages with generated parts."""
    return [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts and "<!-- generated:" in path.read_text("utf-8")]


def write() -> None:
    """Write the committed form of each page that differs from it."""
    for path in pages():
        text = path.read_text("utf-8")
        if (fresh := refresh(text)) != text:
            path.write_text(fresh, "utf-8")


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


if __name__ == "__main__":
    write()
