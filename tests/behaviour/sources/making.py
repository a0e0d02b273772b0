"""The same drawn images as all that people keep images in, and what came out of them."""

import csv
import hashlib
import io
import json
import os
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

# Words that occur nowhere else, to be looked for in the bytes of files.
LABELS = ("quokkaxylograph", "vermilionzeugma")
LONG_AGO = 1_700_000_000 * 10**9

Images = Mapping[str, bytes]  # by name: `quokkaxylograph/003.jpg`


def draw_images(count: int, seed: int = 0, side: int = 40) -> dict[str, bytes]:
    """Draw JPEGs, all different, some hundred bytes each: half of them of one label."""
    rng = np.random.default_rng(seed)
    images = {}
    for i in range(count):
        coarse = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((side, side + i % 5), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=70, comment=f"{seed}:{i}".encode())
        images[f"{LABELS[i % 2]}/{i:03}.jpg"] = buffer.getvalue()
    return images


def age(*paths: Path, seconds: float = 0) -> None:
    """Let files be of long ago: a time that proves that they are unchanged."""
    for path in paths:
        then = LONG_AGO + int(seconds * 10**9)
        os.utime(path, ns=(then, then))


def label_of(name: str) -> str:
    return name.partition("/")[0]


def write_folder(path: Path, images: Images) -> Path:
    for name, data in images.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        age(file)
    return path


def write_tar(
    path: Path, images: Images, labels: bool = True, later: float = 0, **options: Any
) -> Path:
    """Write a shard: `003.jpg` and, beside it, `003.cls`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, data in images.items():
            base = name.rpartition("/")[2]
            members = [(base, data)]
            if labels:
                members.append((f"{base.partition('.')[0]}.cls", label_of(name).encode()))
            for member, content in members:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    age(path, seconds=later)
    return path


def write_shards(folder: Path, images: Images, per_shard: int, first: int = 0) -> Path:
    names = list(images)
    for k, start in enumerate(range(0, len(names), per_shard)):
        part = {name: images[name] for name in names[start : start + per_shard]}
        write_tar(folder / f"shard-{first + k:06}.tar", part)
    return folder


def write_zip(path: Path, images: Images) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in images.items():
            archive.writestr(name, data)
    age(path)
    return path


def make_table(images: Images, names: Sequence[str] = LABELS) -> pa.Table:
    """Make a table as Hugging Face lays it out: the label is a number, its names are metadata."""
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table(
        {
            "image": pa.array([{"bytes": d, "path": n} for n, d in images.items()], image),
            "label": pa.array([list(names).index(label_of(n)) for n in images], pa.int64()),
        }
    )
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def write_parquet(path: Path, images: Images, later: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(make_table(images), path, row_group_size=7, **plain)
    age(path, seconds=later)
    return path


def write_saved(folder: Path, images: Images) -> Path:
    """Write the layout of `DatasetDict.save_to_disk`: streams of Arrow, a folder a split."""
    (folder / "train").mkdir(parents=True)
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (folder / "train" / "state.json").write_text("{}")
    (folder / "train" / "dataset_info.json").write_text("{}")
    names = list(images)
    for k, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        table = make_table({name: images[name] for name in part})
        path = folder / "train" / f"data-{k:05}-of-00002.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=5)
        age(path)
    return folder


def write_csv(path: Path, cells: Iterable[str], titles: Sequence[str] = ("path", "label")) -> Path:
    """Write a list of paths or URLs, whose last folder is the label."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(titles)
        writer.writerows([cell, cell.split("/")[-2]] for cell in cells)
    age(path)
    return path


def write_jsonl(path: Path, cells: Iterable[str]) -> Path:
    rows = ({"file_name": cell, "label": cell.split("/")[-2]} for cell in cells)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    age(path)
    return path


class Server(ThreadingHTTPServer):
    """A web server that takes its time, and notes how many requests are in its hands at once."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, files: Mapping[str, bytes] | None = None, seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {f"/{name}": data for name, data in (files or {}).items()}
        self.statuses: dict[str, int] = {}
        self.seconds, self.paths = seconds, list[str]()
        self.in_hand = self.most_in_hand = 0
        self.counting = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are ended hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        server = self.server
        with server.counting:
            server.paths.append(self.path)
            server.in_hand += 1
            server.most_in_hand = max(server.most_in_hand, server.in_hand)
        time.sleep(server.seconds)
        with server.counting:
            server.in_hand -= 1
        path = self.path.partition("?")[0]
        data = server.files.get(path)
        status = server.statuses.get(path, 404 if data is None else 200)
        data, asked, headers = data or b"", self.headers["Range"], {}
        if status == 200 and asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last or len(data)) + 1]
            end = int(first) + len(part) - 1
            status, headers = 206, {"Content-Range": f"bytes {first}-{end}/{len(data)}"}
            data = part
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def read_features(cache: Path, layer: str | None = None) -> dict[bytes, np.ndarray]:
    """Read the features of each content, by its SHA-256, with plain h5py."""
    with h5py.File(cache) as file:
        (name,) = file["features"] if layer is None else (layer,)
        features, digests = file["features"][name][:], file["images/sha256"][:]
        marked = file["images/status"][:] == 1
    return {digests[row].tobytes(): features[row] for row in np.flatnonzero(marked)}


def read_keys(cache: Path) -> list[str]:
    with h5py.File(cache) as file:
        return [path.decode() for path in file["images/path"][:]]


def read_statuses(cache: Path) -> dict[str, tuple[int, int]]:
    """Read status and reason by key."""
    with h5py.File(cache) as file:
        columns = (file[f"images/{name}"][:].tolist() for name in ("status", "reason"))
        return dict(zip(read_keys(cache), zip(*columns, strict=True), strict=True))


def hash_all(images: Images) -> set[bytes]:
    return {hashlib.sha256(data).digest() for data in images.values()}


def assert_same_features(found: Mapping[bytes, np.ndarray], wanted: Mapping[bytes, np.ndarray]):
    """Features that agree to 1e-5 of their norm, as they do where batches are other ones."""
    assert found.keys() == wanted.keys()
    for digest, features in wanted.items():
        assert features.dtype == found[digest].dtype == np.float32
        distance = np.linalg.norm(found[digest].astype(float) - features)
        assert distance <= 1e-5 * np.linalg.norm(features)
