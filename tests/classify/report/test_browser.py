"""The report in a real browser: Chromium, driven through its debugging pipe."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classify.experiments.compare import compare

pytest.importorskip("bokeh")
from classify.report.write import write_report
from classify.strategy.advise_best import advise_on_best

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on PATH to open the report in"),
    pytest.mark.skipif(os.name != "posix", reason="the debugging pipe needs file descriptors"),
]
HOSTILE = "<img src=x onerror=alert(1)>.png"
LABELS = ["</script><script>alert(2)</script>", "$$x^2$$ <!--", "plain & simple"]
N = 90
LOAD_SECONDS = 60


class Browser:
    """One page of a headless Chromium, by the DevTools protocol; no package needed."""

    def __init__(self, profile: Path) -> None:
        (read_there, self._write), (self._read, write_there) = os.pipe(), os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        options = [
            *("--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        command = f'exec "$0" "$@" 3<&{read_there} 4>&{write_there}'
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                command,
                str(PROGRAM),
                *options,
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self._buffer, self._number, self._session = b"", 0, {}
        self.events: list[dict[str, Any]] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        (page,) = (t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], LOAD_SECONDS)[0]:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise EOFError("Chromium has gone")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events are put aside."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)
            if answer.get("method") == "Page.javascriptDialogOpening":
                raise AssertionError(f"a dialog opened: {answer['params']}")

    def open(self, path: Path, width: int, *, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._next())
        # Nothing is scrolled to: all charts are drawn as the page opens.
        self.until("[...document.querySelectorAll('.chart')].every((box) => drawn.get(box.id))")

    def js(self, code: str) -> Any:
        found = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, code: str) -> None:
        """Wait for something to become true."""
        end = time.monotonic() + LOAD_SECONDS
        while not self.js(code):
            assert time.monotonic() < end, f"never true: {code}"
            time.sleep(0.05)

    def move(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and requests beyond the file itself."""
        self.js("1")
        found = []
        for event in self.events:
            method, told = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(str(told["exceptionDetails"]))
            if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
                found.append(str(told["args"]))
            if method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
                found.append(told["entry"]["text"])
            if method == "Network.requestWillBeSent":
                url = told["request"]["url"]
                if not url.startswith("data:"):
                    found.append(url)
        return found

    def close(self) -> None:
        self._session = {}
        with suppress(EOFError, OSError):
            self.call("Browser.close")
        os.close(self._write)
        os.close(self._read)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
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


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (1280, True)])
def test_opens_without_complaint_and_without_scrolling_sideways(browser, report, width, dark):
    browser.open(report, width, dark=dark)
    assert browser.complaints() == [report.as_uri()]
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js("document.querySelectorAll('.chart').length") == 7
    cut_off = "[...document.querySelectorAll('.scroll')].map((e) => e.scrollWidth - e.clientWidth)"
    if width >= 1280:
        assert set(browser.js(cut_off)) == {0}
    ink = browser.js("drawn.get('task-1-depth-test').below[0].major_label_text_color")
    assert ink == ("#9aa4b1" if dark else "#5d6673")


PAPER = 703  # pixels of A4 between margins of 12 mm


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
