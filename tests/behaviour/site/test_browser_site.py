"""The site in a real browser, from files: quiet, narrow enough for a phone, with a search."""

from pathlib import Path

import pytest

from ...browser import NEEDS_CHROMIUM, Browser

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def requests_beyond_files(browser: Browser) -> list[str]:
    """What the console complains of, and what was asked of a network."""
    return [each for each in browser.complaints() if not each.startswith("file://")]


def check_pages(browser: Browser, paths: list[Path], width: int, dark: bool) -> None:
    for path in paths:
        browser.open(path, width, dark=dark)
        assert requests_beyond_files(browser) == [], path
        assert browser.js("document.documentElement.scrollWidth") <= width, path
        assert browser.js("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")


@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_pages_open_in_peace(browser, site, width, dark):
    names = ("index", "backbones", "cli", "python/classify", "repository/benchmarks/RESULTS")
    check_pages(browser, [site / f"{name}.html" for name in names], width, dark)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_every_page_opens_in_peace(browser, site, width, dark):
    paths = [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]
    check_pages(browser, paths, width, dark)


def test_a_complaint_or_request_is_noticed(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('bad')</script>")
    browser.open(page, 1280)
    found = " ".join(requests_beyond_files(browser))
    assert "http://127.0.0.1:9/x.png" in found
    assert "bad" in found


def test_search_finds_pages_from_files(browser, site):
    browser.open(site / "index.html", 1280)
    browser.js(
        "const box = document.querySelector('[data-md-component=search-query]');"
        "document.querySelector('[data-md-toggle=search]').click(); box.focus();"
        "box.value = 'fingerprint'; box.dispatchEvent(new Event('input', {bubbles: true}));"
        "box.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}))"
    )
    browser.until("document.querySelectorAll('.md-search-result__link').length > 0")
    links = browser.js("[...document.querySelectorAll('.md-search-result__link')].map(a => a.href)")
    assert any("fingerprint.html" in link for link in links)
    assert requests_beyond_files(browser) == []


def test_code_can_be_copied(browser, site):
    browser.open(site / "index.html", 1280)
    browser.until(
        "document.querySelectorAll('[data-clipboard-target], .md-code__button').length > 0"
    )
