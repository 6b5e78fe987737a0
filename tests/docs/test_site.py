"""Documentation site: it builds without warnings, its links resolve, and it loads nothing from a network."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import PAGES, ROOT

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(<?([^)\s>]+)>?\)|!\[[^\]]*\]\(([^)\s]+)\)")


class _Page(HTMLParser):
    """Links, ids and loaded files of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value for key, value in attrs if value}
        self.ids |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("img", "script", "source") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(values.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(out / "doctrees"), str(ROOT / "docs")]
    built = subprocess.run([*command, str(out / "html")], capture_output=True, text=True, check=False, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    return out / "html"


@pytest.fixture(scope="module")
def html(site: Path) -> dict[Path, _Page]:
    """Every page of the site."""
    return {path: _Page(path) for path in site.rglob("*.html")}


def test_every_link_of_the_site_resolves(site: Path, html: dict[Path, _Page]) -> None:
    broken = []
    for path, page in html.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or not link.strip("#"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = html[target].ids if target in html else {parts.fragment}
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_site_loads_nothing_from_a_network(html: dict[Path, _Page]) -> None:
    assert {link for page in html.values() for link in page.loaded if urlsplit(link).scheme in ("http", "https")} == set()


def test_site_has_an_index_for_language_models(site: Path) -> None:
    text = (site / "llms.txt").read_text("utf-8")
    assert text.startswith("# edgetl\n\n> ")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert [link for link in links if not (site / link).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_page_to_files_and_headings_resolve(page: Path) -> None:
    """Check the links as GitHub resolves them, so that pages can be read without the site."""
    broken = []
    for match in LINK.finditer(_without_code(page)):
        link = urlsplit(match[1] or match[2])
        if link.scheme:
            continue
        target = (page.parent / unquote(link.path)).resolve() if link.path else page
        anchors = _anchors(target) if target.suffix == ".md" and target.is_file() else {link.fragment}
        if not target.exists() or (link.fragment and link.fragment not in anchors):
            broken.append(match[0])
    assert broken == []


def _without_code(page: Path) -> str:
    return re.sub(r"^(`{3,}).*?^\1", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub and MyST name them, and explicit targets."""
    text = _without_code(page)
    headings = re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).lower() for heading in headings]
    slugs = {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)) | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
