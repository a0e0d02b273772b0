"""A web server that can be as odd as a test wants, and a store in memory."""

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class WebServer(ThreadingHTTPServer):
    """Serves `files` by path, with ranges if `has_ranges`; `replies` are tried first, by path.

    `requests` has a line for each request: method, path, and the range asked for.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.replies: dict[str, Callable[[_Handler], None]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.has_ranges, self.seconds = True, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what some tests want."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        server = self.server
        server.requests.append((self.command, self.path, self.headers["Range"]))
        server.headers.append(dict(self.headers))
        time.sleep(server.seconds)
        path = self.path.partition("?")[0]
        if path in server.replies:
            server.replies[path](self)
        elif path not in server.files:
            self.answer(404)
        else:
            self.send_file(server.files[path])

    do_HEAD = do_GET

    def send_file(self, data: bytes) -> None:
        asked = self.headers["Range"]
        if not asked or not self.server.has_ranges:
            self.answer(200, data)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        if int(first) >= len(data):
            self.answer(416, **{"Content-Range": f"bytes */{len(data)}"})
            return
        part = data[int(first) : int(last) + 1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self.answer(206, part, **{"Content-Range": span})

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def in_memory() -> Iterator[Callable[[dict[str, bytes]], None]]:
    """Puts files into `memory://`, by their paths."""
    import fsspec

    store = fsspec.filesystem("memory")

    def put(files: dict[str, bytes]) -> None:
        for path, data in files.items():
            store.pipe(path, data)

    store.store.clear()
    yield put
    store.store.clear()
