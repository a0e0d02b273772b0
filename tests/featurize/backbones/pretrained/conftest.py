"""A hub for tests: its local cache as it lies on a disk, and a small server that speaks for it."""

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_SecretTokenThatNobodyMayPrint"
FILES = ("config.json", "model.safetensors")


def store_in_hub_cache(home: Path, repository: str, commit: str, folder: Path, ref: str) -> None:
    """Lay a folder into the hub's cache as its client does: snapshots by commit, names as refs."""
    model = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in FILES:
        (snapshot / name).symlink_to((folder / name).resolve())
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / ref).write_text(commit)


@pytest.fixture(scope="session")
def fill_hub_cache() -> Callable[..., None]:
    """Lay a folder into the hub's cache: ``fill_hub_cache(home, "org/name", commit, folder)``."""

    def fill(home: Path, repository: str, commit: str, folder: Path, ref: str = "main") -> None:
        store_in_hub_cache(home, repository, commit, folder, ref)

    return fill


class Hub:
    """A server with models: ``models[repository]`` is a dict of revision to (commit, folder).

    Attributes
    ----------
    status : int
        The answer to everything, if it is not 200; 0 never answers.
    error_code : str
        The hub's own word for the error.
    requests : list of str
        What was asked for.
    """

    def __init__(self) -> None:
        self.models: dict[str, dict[str, tuple[str, Path]]] = {}
        self.status, self.error_code, self.requests = 200, "", []  # type: ignore[var-annotated]
        self.ending = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                if hub.status == 0:
                    hub.ending.wait(60)
                    return
                status, headers, body = hub.find(self.path.partition("?")[0])
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def find(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        if self.status != 200:
            return self.status, {"X-Error-Code": self.error_code}, b"{}"
        words = path.strip("/").split("/")
        is_info = words[:2] == ["api", "models"]
        words = words[2:] if is_info else words
        revisions = self.models.get("/".join(words[:2]))
        if revisions is None:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        wanted = words[3] if len(words) > 3 else "main"
        by_commit = {commit: (commit, folder) for commit, folder in revisions.values()}
        found = {**by_commit, **revisions}.get(wanted)
        if found is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        commit, folder = found
        if is_info:
            sizes = [{"rfilename": name, "size": (folder / name).stat().st_size} for name in FILES]
            entry = {"id": "/".join(words[:2]), "sha": commit, "siblings": sizes}
            return 200, {"Content-Type": "application/json"}, json.dumps(entry).encode()
        body = (folder / words[4]).read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        return 200, {"ETag": etag, "X-Repo-Commit": commit}, body

    def close(self) -> None:
        self.ending.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A server of models on this machine, empty at first."""
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def environ(tmp_path) -> Callable[..., dict[str, str]]:
    """The environment of a user with a cache of the hub: ``environ(HF_ENDPOINT=...)``."""

    def make(**more: str) -> dict[str, str]:
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
        ours = {k: v for k, v in ours.items() if not k.lower().endswith("_proxy")}
        return {**ours, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, **more}

    return make


@pytest.fixture
def vit(make_harsh, write_folder, tmp_path) -> Path:
    """A folder with a small vision transformer."""
    return write_folder(tmp_path / "vit", make_harsh("test_vit", num_classes=3))


@pytest.fixture
def featurize(command, environ):
    """Run the command as somebody with a hub's cache, and hide nothing of what it says."""

    def call(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        done = command("featurize", *arguments, env=environ(**more))
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call
