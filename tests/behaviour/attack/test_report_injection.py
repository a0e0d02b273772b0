"""A report of hostile names: whatever they say, the page has no element and no script of theirs."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from featurize.backbones import seedling

from .starting import Starter
from .world import NETWORK, classes

pytest.importorskip("bokeh")

LABELS = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "<!--<script>",
    "{{7*7}}{% raw %}",
    "javascript:alert(3)",
    "\"' onmouseover='alert(4)' x=\"",
    "</style><svg onload=alert(5)>",
    "$$\\href{javascript:alert(6)}{x}$$",
    "]]>&lt;b&gt;",
    "\u202egnp.x\u2028\u0000".replace("\0", ""),
)
OWN = {"generator", "viewport"}
FORBIDDEN = {"iframe", "object", "embed", "base", "form", "link", "video", "audio", "portal"}


class Page(HTMLParser):
    """Every element of a page with its attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.comments: list[str] = []
        self._script: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs)
            self.scripts.append((self._script, ""))

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            about, before = self.scripts[-1]
            self.scripts[-1] = about, before + data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def folder_name(label: str) -> str:
    return label.replace("/", "\u2215")


@pytest.fixture(scope="module")
def hostile(start: Starter, tmp_path_factory):
    """Pages over images whose folders, files, labels, root and backbone all are attacks."""
    home = tmp_path_factory.mktemp("hostile")
    root = home / folder_name("<img src=x onerror=alert(8)>")
    classes(root, each=12, names="abcde")
    table = ["path,label"]
    for k, old in enumerate(sorted(root.iterdir())):
        folder = root / folder_name(LABELS[k])
        old.rename(folder)
        for i, path in enumerate(sorted(folder.iterdir())):
            name = folder_name(f"{LABELS[(k + i) % len(LABELS)]}{i}.png")
            path.rename(folder / name)
            label = LABELS[5 + k].replace('"', '""')
            quoted = f"{folder.name}/{name}".replace('"', '""')
            table.append(f'"{quoted}","{label}"')
    labels = home / folder_name("<b onclick=alert(9)>.csv")
    labels.write_text("\n".join(table) + "\n", encoding="utf-8")
    weights = home / "<script>w.safetensors"
    (shipped,) = Path(seedling.__file__).parent.glob("*.safetensors")
    shutil.copy(shipped, weights)
    cache = home / folder_name("<i>c.h5")
    words = ("run", root, "-o", cache, *NETWORK, "--weights", weights, "--layers", "stage2,stage4")
    done = start("featurize", *words)
    assert done.code == 0, done.said
    pages = []
    for number, options in enumerate(([], ["--labels", labels])):
        output = home / f"{number}.html"
        words = ("report", cache, "-o", output, "--images", root, "--heads", "ridge,ncm", *options)
        done = start("classify", *words, "--layers", "each", hang=120)
        assert done.code == 0, done.said
        pages.append(output.read_text(encoding="utf-8"))
    return pages


@pytest.mark.long
@pytest.mark.parametrize("number", [0, 1])
def test_no_element_comes_from_a_name(hostile, number):
    page = Page(hostile[number])
    kinds = {tag for tag, _ in page.elements}
    assert not kinds & FORBIDDEN
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}={value!r}>"
            if name in ("src", "href", "srcset", "action", "xlink:href", "formaction"):
                assert (value or "#").startswith(("#", "data:image/")), f"<{tag} {name}={value!r}>"
            if name == "style":
                assert "url(" not in (value or "").replace("url(#", ""), value
    assert not any("script" in comment or "alert" in comment for comment in page.comments)


@pytest.mark.parametrize("number", [0, 1])
def test_only_the_pages_own_scripts_may_run(hostile, number):
    page = Page(hostile[number])
    policies = [
        about["content"] or ""
        for tag, about in page.elements
        if tag == "meta" and (about.get("http-equiv") or "").lower() == "content-security-policy"
    ]
    assert len(policies) == 1
    rules = {rule.split()[0]: rule.split()[1:] for rule in policies[0].split(";") if rule.strip()}
    assert rules["default-src"] == ["'none'"]
    assert all(re.fullmatch(r"'sha256-[A-Za-z0-9+/=]+'", source) for source in rules["script-src"])
    for about, text in page.scripts:
        if "type" in about and about["type"] not in ("module", "text/javascript"):
            json.loads(text)  # data, which nobody runs
            assert "<" not in text
            continue
        assert "alert(" not in text
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules["script-src"]


def test_the_names_are_there_as_text(hostile):
    """They are shown, not left out: the attack did reach the page."""
    whole = "".join(hostile).replace("\\u003c", "<").replace("&lt;", "<").replace("&#34;", '"')
    for words in ("<script>", "onerror=alert(2)", "{{7*7}}", "onmouseover"):
        assert words in whole


def test_the_policy_comes_before_anything_else(hostile):
    for text in hostile:
        first = text.index("Content-Security-Policy")
        assert first < 4096
        assert "<script" not in text[:first]
        assert "<style" not in text[:first]
