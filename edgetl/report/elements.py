"""HTML and SVG elements. Every text and attribute is escaped, because names of files and classes may contain any character."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias
from xml.etree.ElementTree import Element, tostring

from edgetl.core.files.names import printable
from edgetl.core.files.regular import open_plain
from edgetl.core.results import Proportion

Child: TypeAlias = Element | str | Iterable["Child"] | None
# No scripts, no requests. A class name that looks like HTML would still have no effect.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# The generator is in the first bytes of a page.
_HEAD_BYTES = 1000


def element(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """Return an element.

    Args:
        tag: name of the element.
        children: elements and texts, or lists of them. None adds nothing.
        attributes: ``class_="a"`` becomes ``class="a"``, ``aria_label`` becomes ``aria-label``. None adds no attribute. Floats are
            rounded to two digits, enough for coordinates.
    """
    made = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else printable(str(value))
            made.set(name.rstrip("_").replace("_", "-"), text)
    _append(made, children)
    return made


def _append(parent: Element, children: Iterable[Child]) -> None:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Element):
            parent.append(child)
        elif not isinstance(child, str):
            _append(parent, child)
        elif len(parent):
            parent[-1].tail = (parent[-1].tail or "") + printable(child)
        else:
            parent.text = (parent.text or "") + printable(child)


def to_html(root: Element) -> str:
    """Return the HTML text of an element."""
    return tostring(root, encoding="unicode", method="html")


def html_document(title: str, generator: str, body: Element) -> str:
    """Return a complete HTML page in one file, with the style of the report, without scripts and network access.

    Args:
        title: title of the page.
        generator: command that writes the page. ``is_generated`` recognizes it.
        body: body of the page.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=f"{generator}, version {version('edgetl')}"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
    )
    style = element("style")
    style.text = files("edgetl.report").joinpath("page_files/report.css").read_text("utf-8")
    head.append(style)
    return f"<!DOCTYPE html>\n{to_html(element('html', head, body, lang='en'))}\n"


def page_body(brand: str, title: str, navigation: Element, *content: Child) -> Element:
    """Return the body of a page: link to the content, header, navigation, content and footer.

    Args:
        brand: kind of the page, above the title.
        title: title of the page.
        navigation: element ``nav``.
        content: children of ``main``.
    """
    return element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("header", paragraph(brand, class_="brand"), element("h1", title)),
        navigation,
        element("main", *content, id="content"),
        element("footer", paragraph(f"Written by edgetl {version('edgetl')}. The page needs no network.")),
    )


def left_out_note(count: int) -> Element | None:
    """Return the note about images that the limit on the size of a page left out; none without such images."""
    return paragraph(f"{count} images were left out, because the page would exceed 5 MB.", class_="warning") if count else None


def is_generated(path: Path, generator: str) -> bool:
    """Return true if a file is a page of ``html_document`` with this generator."""
    try:
        with open_plain(path, follow_links=False) as file:
            return f'name="generator" content="{generator},'.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


def number(value: float, digits: int = 3) -> Element:
    """Return a rounded number. The attribute ``value`` has all digits."""
    return element("data", f"{value:.{digits}f}", value=repr(value))


def with_interval(figure: Proportion, digits: int = 3) -> list[Child]:
    """Return a metric with its 95 % interval."""
    if not figure.n:
        return ["none (no images)"]
    low, high = f"{figure.low:.{digits}f}", f"{figure.high:.{digits}f}"
    return [number(figure.value, digits), " ", element("span", f"({low} to {high})", class_="interval")]


def _with_code(child: Child) -> Child:
    """Return a text with its parts between backticks as code: messages of the command line contain commands."""
    if not isinstance(child, str):
        return child
    return [element("code", part) if index % 2 else part for index, part in enumerate(child.split("`"))]


def paragraph(*children: Child, class_: str | None = None) -> Element:
    """Return a paragraph."""
    return element("p", *map(_with_code, children), class_=class_)


def facts(rows: Iterable[tuple[str, Child]]) -> Element:
    """Return a description list of names and values."""
    return element("dl", [element("div", element("dt", name), element("dd", _with_code(value))) for name, value in rows], class_="facts")


def items(values: Iterable[Child]) -> Element:
    """Return a bulleted list."""
    return element("ul", [element("li", _with_code(value)) for value in values])


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Child]], *, text_columns: int = 1) -> Element:
    """Return a table in a box that scrolls sideways on a narrow screen.

    Args:
        caption: title of the table.
        head: titles of the columns.
        rows: cells. The first cell is the header of its row.
        text_columns: number of left-aligned columns. The others have numbers, aligned on the right.
    """
    kinds = ["text" if index < text_columns else "number" for index in range(len(head))]
    titles = [element("th", title, scope="col", class_=kind) for title, kind in zip(head, kinds, strict=True)]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", class_=kinds[0]),
            [element("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)],
        )
        for row in rows
    ]
    return scrollable(
        element("table", element("caption", caption), element("thead", element("tr", titles)), element("tbody", body)), caption
    )


def scrollable(content: Element, label: str) -> Element:
    """Return a box that scrolls sideways with the pointer or the keyboard. ``label`` is its name for screen readers."""
    return element("div", content, class_="scroll", tabindex=0, role="group", aria_label=label)


def figure(content: Child, caption: Child) -> Element:
    """Return a chart or image with its caption."""
    return element("figure", content, element("figcaption", caption))
