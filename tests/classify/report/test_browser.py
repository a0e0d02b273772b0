"""The report in a real browser."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classify.experiments.compare import compare_classes as compare

from ...browser import NEEDS_CHROMIUM, Browser

pytest.importorskip("bokeh")
from classify.report.write import write_report
from classify.strategy.advise_best import advise_on_best

pytestmark = NEEDS_CHROMIUM
HOSTILE = "<img src=x onerror=alert(1)>.png"
LABELS = ["</script><script>alert(2)</script>", "$$x^2$$ <!--", "plain & simple"]
N = 90


class ReportBrowser(Browser):
    """A browser that has all charts of a report drawn."""

    def open(self, path: Path, width: int, *, dark: bool = False) -> None:
        super().open(path, width, dark=dark)
        # Nothing is scrolled to: all charts are drawn as the page opens.
        self.until("[...document.querySelectorAll('.chart')].every((box) => drawn.get(box.id))")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReportBrowser]:
    opened = ReportBrowser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, make_cache) -> Path:
    """Three classes with hostile names, and an image with one."""
    folder = tmp_path_factory.mktemp("report")
    rng, y = np.random.default_rng(0), np.arange(N) % 3
    deep = (rng.normal(size=(N, 8)) + 2 * np.eye(8)[y]).astype(np.float32)
    paths = [HOSTILE, *(f"{i:03}.png" for i in range(1, N))]
    order = sorted(range(N), key=paths.__getitem__)
    (folder / "images").mkdir()
    for i, path in enumerate(paths):
        grey = np.full((20, 20), 40 + 80 * y[i], np.uint8)
        Image.fromarray(grey).save(folder / "images" / path)
    cache = make_cache(
        folder / "c.h5",
        {"shallow": rng.normal(size=(N, 4)).astype(np.float32), "deep": deep[order]},
        [paths[i] for i in order],
    )
    table = folder / "kind.csv"
    lines = [f'"{paths[i]}","{LABELS[y[i]]}"' for i in order]
    table.write_text("\n".join(["path,label", *lines]) + "\n")
    found = compare(cache, table, heads="lda,ncm", jobs=1)
    advice, notices = advise_on_best(cache, found, [table])
    assert notices == []
    options = {"images": folder / "images", "command": "a <b> c", "advice": advice}
    write_report(folder / "r.html", cache, found, **options)
    return folder / "r.html"


@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (1280, True)])
def test_opens_without_complaint_and_without_scrolling_sideways(browser, report, width, dark):
    browser.open(report, width, dark=dark)
    assert browser.complaints() == [report.as_uri()]
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js("document.querySelectorAll('.chart').length") == 8
    cut_off = "[...document.querySelectorAll('.scroll')].map((e) => e.scrollWidth - e.clientWidth)"
    if width >= 1280:
        assert set(browser.js(cut_off)) == {0}
    ink = browser.js("drawn.get('task-1-depth-test').below[0].major_label_text_color")
    assert ink == ("#9aa4b1" if dark else "#5d6673")


PAPER = 703  # pixels of A4 between margins of 12 mm


@pytest.mark.long
@pytest.mark.parametrize("dark", [False, True])
def test_on_paper_nothing_is_cut_and_nothing_is_left_to_click(browser, report, dark):
    browser.open(report, 1280, dark=dark)
    charts = "[...document.querySelectorAll('.chart')]"
    browser.until(f"{charts}.every((e) => e.style.getPropertyValue('--fit'))")
    browser.js("dispatchEvent(new Event('beforeprint'))")
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=PAPER, height=990, deviceScaleFactor=1, mobile=False,
    )  # fmt: skip
    try:
        boxes = "[...document.querySelectorAll('.chart, table, .shot')]"
        assert max(browser.js(f"{boxes}.map((e) => e.getBoundingClientRect().right)")) <= PAPER
        scale = "document.querySelector('#task-1-map').currentCSSZoom"
        assert browser.js(f"drawn.get('task-1-map').inner_width * {scale}") <= PAPER
        assert browser.js("getComputedStyle(document.querySelector('.switch')).display") == "none"
        assert browser.js("[...document.querySelectorAll('details')].every((it) => it.open)")
        tables = "[...document.querySelectorAll('.scroll')]"
        assert browser.js(f"{tables}.every((e) => e.scrollHeight == e.clientHeight)")
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_hostile_names_are_text(browser, report):
    browser.open(report, 1280)
    assert browser.js("document.querySelectorAll('[onerror], img[src=x]').length") == 0
    text = browser.js("document.body.innerText")
    for label in LABELS:
        assert label in text
    assert "a <b> c" in text


def test_nothing_injected_would_run(browser, report):
    browser.open(report, 1280)
    browser.js(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">');"
        "const s = document.createElement('script'); s.textContent = 'window.ran = 2';"
        "document.body.append(s)"
    )
    time.sleep(0.2)
    assert browser.js("window.ran") is None


def test_headings_sort(browser, report):
    browser.open(report, 1280)
    column = "[...document.querySelector('tbody').rows].map((row) => row.cells[3].dataset.value)"
    press = "document.querySelectorAll('th button')[3].click()"
    browser.js(press)
    down = [float(value) for value in browser.js(column)]
    assert down == sorted(down, reverse=True)
    assert len(set(down)) > 1
    browser.js(press)
    assert [float(value) for value in browser.js(column)] == sorted(down)
    headings = "document.querySelector('table').querySelectorAll('th')"
    states = browser.js(f"[...{headings}].map((th) => th.ariaSort)")
    assert states[3] == "ascending"
    assert states.count("ascending") + states.count("descending") == 1


def test_headings_sort_by_keyboard(browser, report):
    browser.open(report, 1280)
    browser.js("document.querySelector('th button').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent",
            type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13,
        )  # fmt: skip
    assert browser.js("document.querySelector('th').ariaSort") == "ascending"


def test_hover_shows_the_picture_and_the_name_as_text(browser, report):
    browser.open(report, 1280)
    browser.js("document.querySelector('#task-1-map').scrollIntoView({behavior: 'instant'})")
    place = """(() => {
        const figure = drawn.get('task-1-map'), points = pointsOf(figure).data;
        const i = points.path.findIndex((path) => path.includes('onerror'));
        const { x_scale, y_scale } = Bokeh.index.find_one_by_id(figure.id).frame;
        const box = document.querySelector('#task-1-map').getBoundingClientRect();
        return [box.x + x_scale.compute(points.x[i]), box.y + y_scale.compute(points.y[i])];
    })()"""
    x, y = browser.js(place)
    tip = "document.querySelector('.bk-Tooltip')?.shadowRoot"
    for step in range(6, -1, -1):  # a pointer that arrives, as a hand moves it
        browser.move(x + step, y)
        time.sleep(0.05)
    browser.until(f"!!{tip}?.querySelector('img')")
    assert HOSTILE in browser.js(f"{tip}.textContent")
    assert browser.js(f"{tip}.querySelectorAll('[onerror]').length") == 0
    image = f"{tip}.querySelector('img')"
    assert browser.js(f"{image}.src").startswith("data:image/")
    assert browser.js(f"{image}.decode().then(() => {image}.naturalWidth)") == 20
    assert browser.complaints() == [report.as_uri()]


def test_legend_hides_and_projection_switches(browser, report):
    browser.open(report, 1280)
    shown = "drawn.get('task-1-map').renderers.filter((r) => r.name == 'class-0')[0].visible"
    press = "document.querySelector('button[data-name=class-0]')"
    browser.js(f"{press}.click()")
    assert browser.js(shown) is False
    assert browser.js(f"{press}.ariaPressed") == "false"
    browser.js("document.querySelector('button[data-way=pca]').click()")
    same = "(() => { const d = pointsOf(drawn.get('task-1-map')).data; return d.x === d.pca_x })()"
    assert browser.js(same)
    assert browser.complaints() == [report.as_uri()]


def test_screenshot_has_ink(browser, report):
    """Charts are painted, not only present."""
    browser.open(report, 1280)
    browser.js("document.querySelector('#task-1-confusion').scrollIntoView({behavior: 'instant'})")
    time.sleep(0.5)
    data = base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"])
    assert len(data) > 20_000
