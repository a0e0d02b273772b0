"""What MkDocs is told beyond mkdocs.yml: files of the repository outside docs/ become pages too.

A page of docs/ may link to `../benchmarks/RESULTS.md` or `../examples/a.py`. On the pages of a
repository such a link leads to the file. In the site it leads to `repository/...`: Markdown as a
page, other text as a listing.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
COPIED = "repository"
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^ *(```|~~~)")
PICTURES = (".svg", ".png")
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".csv": "text", ".R": "r"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside docs/ that a page leads to, and for those they lead to."""
    waiting = [(file.src_uri, Path(file.abs_src_path).read_text()) for file in _pages(files)]
    done: set[str] = set()
    while waiting:
        uri, text = waiting.pop()
        for target in _links(text):
            place = _in_repository(uri, target)
            if place is None or place in done:
                continue
            done.add(place)
            path = ROOT / place
            if place.startswith("..") or not path.is_file():
                raise PluginError(f"{uri} links to {place}: no file of the repository; name one")
            if path.suffix in PICTURES:
                picture = File.generated(config, _uri_of(place), abs_src_path=str(path))
                files.append(picture)
                continue
            content = _copy(place)
            files.append(File.generated(config, _uri_of(place), content=content))
            waiting.append((_uri_of(place), content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that go to files outside docs/ to their pages."""
    uri = page.file.src_uri
    if uri.startswith(f"{COPIED}/"):
        page.meta["search"] = {"exclude": True}  # or every word would be found in code first

    def led(found: re.Match[str]) -> str:
        opening, target, anchor, closing = found.groups(default="")
        place = _in_repository(uri, target)
        if place is not None:
            target = _uri_of(place)
        elif uri.startswith(f"{COPIED}/") and "://" not in target:
            target = _place(uri, target).removeprefix("docs/")
        else:
            return found[0]
        return f"{opening}{posixpath.relpath(target, posixpath.dirname(uri))}{anchor}{closing}"

    return "\n".join(line if fenced else LINK.sub(led, line) for line, fenced in _lines(markdown))


def _pages(files: Files) -> list[File]:
    return [file for file in files if file.is_documentation_page() and file.abs_src_path]


def _lines(text: str) -> list[tuple[str, bool]]:
    """Each line, and whether it is code in a fence."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = bool(FENCE.match(line))
        lines.append((line, inside or fence))
        inside ^= fence
    return lines


def _links(text: str) -> list[str]:
    return [
        match[2] for line, fenced in _lines(text) if not fenced for match in LINK.finditer(line)
    ]


def _place(uri: str, target: str) -> str:
    """What a link of a page means, from the top of the repository."""
    here = uri.removeprefix(f"{COPIED}/") if uri.startswith(f"{COPIED}/") else f"docs/{uri}"
    here = here if (ROOT / here).exists() else here.removesuffix(".md")
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), target))


def _in_repository(uri: str, target: str) -> str | None:
    """The file outside docs/ that a link leads to; None for all other links."""
    if "://" in target or target.startswith("mailto:"):
        return None
    place = _place(uri, target)
    return None if place.startswith("docs/") else place


def _uri_of(place: str) -> str:
    is_kept = place.endswith((".md", *PICTURES))
    return f"{COPIED}/{place}" if is_kept else f"{COPIED}/{place}.md"


def _copy(place: str) -> str:
    """A file of the repository as Markdown."""
    text = (ROOT / place).read_text()
    if place.endswith(".md"):
        return text
    language = LANGUAGES.get(Path(place).suffix, "text")
    return f"# {place}\n\n````{language}\n{text}````\n"
