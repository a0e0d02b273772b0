"""The site as it was built: whole, no dead link, nothing of others and nothing of this machine."""

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from .conftest import ROOT

LOADED = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src"}


class Links(HTMLParser):
    """The names that a page has, the links it shows, and what it loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.names |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values and values.get("rel") != "canonical":
            self.loaded.append(values[LOADED[tag]])


def read_pages(folder: Path) -> dict[Path, Links]:
    return {path: Links(path.read_text()) for path in sorted(folder.rglob("*.html"))}


def find_dead(pages: dict[Path, Links]) -> list[str]:
    """Links within the site whose file or anchor is not there."""
    dead = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            if re.match(r"(https?:|mailto:|data:)", link):
                continue
            place, _, anchor = unquote(link.partition("?")[0]).partition("#")
            there = (path.parent / place).resolve() if place else path
            if there.is_dir():
                there /= "index.html"
            if not there.is_file() or (
                anchor and there in pages and anchor not in pages[there].names
            ):
                dead.append(f"{path.name}: {link}")
    return dead


@pytest.fixture(scope="module")
def pages(site):
    found = read_pages(site)
    assert len(found) > 30
    return found


@pytest.mark.long
def test_no_link_is_dead(pages):
    pages = {path: page for path, page in pages.items() if path.name != "404.html"}
    assert find_dead(pages) == []


def test_a_dead_link_or_anchor_is_noticed(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#x">b</a> <a href="b.html#y"> <a href="c.html">'
    )
    (tmp_path / "b.html").write_text('<h1 id="x">b</h1>')
    assert find_dead(read_pages(tmp_path)) == ["a.html: b.html#y", "a.html: c.html"]


def test_pages_load_nothing_of_others(pages):
    for path, page in pages.items():
        assert [link for link in page.loaded if "//" in link] == [], path


def test_every_page_of_the_docs_is_there(site):
    for path in (ROOT / "docs").rglob("*.md"):
        assert (site / path.relative_to(ROOT / "docs")).with_suffix(".html").is_file()


def test_nothing_of_this_machine_is_in_it(site):
    for path in site.rglob("*.html"):
        assert str(ROOT) not in path.read_text(), path
    assert not list(site.rglob("*.py"))


@pytest.mark.parametrize("package", ["featurize", "classify"])
def test_every_public_name_is_in_the_reference(package, site):
    """In the page of its package under its own anchor, with its signature or base."""
    names = Links((site / "python" / f"{package}.html").read_text()).names
    module = importlib.import_module(package)
    missing = [
        name
        for name in module.__all__
        if not {f"{package}.{name}", f"{package}.errors.{name}"} & names
    ]
    assert missing == [], f"add them to docs/python/{package}.md"


def test_private_names_are_not_in_the_reference(pages, site):
    for package in ("featurize", "classify"):
        names = pages[site / "python" / f"{package}.html"].names
        assert [name for name in names if re.search(r"\._[a-z]", name)] == []


def test_every_part_of_a_docstring_says_something(site):
    """An entry ends in a dash where its docstring has a name and a type, and no word."""
    for package in ("featurize", "classify"):
        text = (site / "python" / f"{package}.html").read_text()
        assert not re.search(r"–\s*<div class=\"doc-md-description\">\s*</div>", text)


def test_parameters_described_together_have_their_own_types(site):
    """`column, labels_level, ...: as in fit` of `compare`: not all of them are text."""
    text = (site / "python" / "classify.html").read_text()
    compare = text[text.index('id="classify.compare"') :]
    entry = re.search(r"<b><code>labels_level</code></b>.*?</li>", compare, re.DOTALL)[0]
    assert "int" in re.sub(r"<[^>]+>", "", entry)


def test_a_link_to_no_file_of_the_repository_ends_the_build(tmp_path):
    """Strictly: a page cannot lead to a file that is not there."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[gone](../benchmarks/gone.py)\n")
    hook = ROOT / "docs" / "site_hooks.py"
    (tmp_path / "mkdocs.yml").write_text(f"site_name: one page\nhooks: [{hook}]\n")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 1
    assert "index.md links to benchmarks/gone.py" in done.stderr
