"""Kinds of sources: what listing and reading cost, whether a run is as fast, and its memory.

1,200 photographs as a folder, as tar shards, a zip, Parquet, Arrow, lists, and behind loopback
servers. Then whole runs, kind beside kind in each round; rates without start-up. Then tiny pictures
from a thousand rows to fifty thousand, each size in a process of its own. The limits: rates within
5 % of the folder's, flat memory.
"""

import argparse
import csv
import hashlib
import http.server
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from machine import describe
from photos import BUILD, photos
from table import Row, show

from featurize.images.reading import ImageFile
from featurize.sources.listing import read_images
from featurize.sources.opening import open_source

COUNT = 1200
SHARDS = 3
ROW_GROUP = 100
RECIPE = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".ppm"))


def pack_tars(folder: Path, home: Path, shards: int = SHARDS) -> None:
    """WebDataset shards, with a label beside each image."""
    files = image_files(folder)
    for shard in range(shards):
        with tarfile.open(home / f"train-{shard:06}.tar", "w") as archive:
            for k in range(shard, len(files), shards):
                label = files[k].parent.name.encode()
                stem = f"{k:08}"
                for name, data in (
                    (f"{stem}.cls", label),
                    (f"{stem}{files[k].suffix}", files[k].read_bytes()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def pack_zip(folder: Path, home: Path) -> None:
    """One archive, stored."""
    with zipfile.ZipFile(home / "photos.zip", "w") as archive:
        for path in image_files(folder):
            archive.write(path, path.relative_to(folder).as_posix())


def pack_tables(folder: Path, home: Path, suffix: str) -> None:
    """The layout of Hugging Face: a struct of bytes and path, in groups of a hundred."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = image_files(folder)
    rows = [
        {
            "image": {"bytes": path.read_bytes(), "path": path.name},
            "label": int(path.parent.name[:1] or 0),
        }
        for path in files
    ]
    table = pa.Table.from_pylist(rows)
    if suffix == "parquet":
        pq.write_table(table, home / "train-00000-of-00001.parquet", row_group_size=ROW_GROUP)
        return
    (home / "train").mkdir()
    with (
        pa.OSFile(str(home / "train" / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=ROW_GROUP)


def write_list(folder: Path, home: Path, name: str, prefix: str = "") -> None:
    """A list of paths or URLs with a label."""
    files = image_files(folder)
    rows = [
        {"path": prefix + path.relative_to(folder).as_posix(), "label": path.parent.name}
        for path in files
    ]
    with (home / name).open("w", newline="") as file:
        if name.endswith("jsonl"):
            file.writelines(json.dumps(row) + "\n" for row in rows)
            return
        writer = csv.DictWriter(file, ["path", "label"])
        writer.writeheader()
        writer.writerows(rows)


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024  # with the default of 5 most requests are refused at first


class _CountingHandler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay, as those of web servers do
    requests: ClassVar[list[str]] = []

    def send_head(self) -> Any:
        self.requests.append(self.command)
        return super().send_head()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A server on loopback; the requests it got."""
    handler = partial(_CountingHandler, directory=str(folder))
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", _CountingHandler.requests
        server.shutdown()


@contextmanager
def serve_s3(folder: Path, shards: Path) -> Iterator[tuple[str, list[str]]]:
    """S3 on loopback, by moto: a bucket of photographs and one of shards."""
    import boto3
    from moto.server import ThreadedMotoServer

    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    requests: ClassVar[list[str]] = []
    server = ThreadedMotoServer("127.0.0.1", 0)
    with redirect_stdout(io.StringIO()):  # it announces itself
        server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
        client = boto3.client("s3")
        for bucket, home in (("photos", folder), ("shards", shards)):
            client.create_bucket(Bucket=bucket)
            for path in sorted(path for path in home.rglob("[!.]*") if path.is_file()):
                client.upload_file(str(path), bucket, path.relative_to(home).as_posix())
        plain = server._server.app  # type: ignore[union-attr]

        def counted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            requests.append(str(environ["REQUEST_METHOD"]))
            return plain(environ, start_response)

        server._server.app = counted  # type: ignore[union-attr]
        yield "s3://", requests
    finally:
        server.stop()


def packed(folder: Path) -> dict[str, Path]:
    """The photographs in every local form, made once."""
    home = BUILD / f"sources-{folder.name}"
    forms: dict[str, tuple[str, Callable[[Path], None]]] = {
        "tar": ("", lambda at: pack_tars(folder, at)),
        "zip": ("photos.zip", lambda at: pack_zip(folder, at)),
        "parquet": ("", lambda at: pack_tables(folder, at, "parquet")),
        "arrow": ("", lambda at: pack_tables(folder, at, "arrow")),
    }
    found = {"folder": folder}
    for name, (given, make) in forms.items():
        if not (home / name / ".whole").exists():
            (home / name).mkdir(parents=True, exist_ok=True)
            make(home / name)
            (home / name / ".whole").touch()
        found[name] = home / name / given
    for name in ("csv", "jsonl"):
        write_list(folder, folder.parent, f"{folder.name}.{name}", f"{folder.name}/")
        found[name] = folder.parent / f"{folder.name}.{name}"
    return found


def time_reading(images: str, requests: list[str]) -> tuple[Row, str]:
    """List and read a source in this thread; a digest of all contents."""
    requests.clear()
    start = time.perf_counter()
    listing = open_source(images).list_images()
    listed, list_requests = time.perf_counter() - start, len(requests)
    requests.clear()
    start = time.perf_counter()
    digests = []
    for _, image in read_images(listing, range(len(listing.paths))):
        if not isinstance(image, ImageFile):
            raise image
        digests.append(hashlib.sha256(image.data).hexdigest())
    row: Row = {
        "images": len(digests),
        "list s": listed,
        "read and hash s": time.perf_counter() - start,
        "requests to list": list_requests or None,
        "to read": len(requests) or None,
        "of them HEAD": requests.count("HEAD") if requests else None,
    }
    return row, hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def show_kinds(forms: dict[str, Path]) -> None:
    """List and read times of every kind."""
    rows, contents = [], set()

    def add(name: str, images: str, requests: list[str]) -> None:
        row, digest = time_reading(images, requests)
        contents.add(digest)
        rows.append({"source": name} | row)

    for name, path in forms.items():
        time_reading(str(path), [])  # what is read once is in memory
        add(name, str(path), [])
    with serve(forms["folder"]) as (url, requests):
        write_list(forms["folder"], BUILD, "urls.csv", f"{url}/")
        add("list of http URLs", str(BUILD / "urls.csv"), requests)
    with serve_s3(forms["folder"], forms["tar"]) as (_, requests):
        add("S3, objects", "s3://photos", requests)
        add("S3, tar shards", "s3://shards", requests)
    if len(contents) != 1:
        raise SystemExit("the sources do not hold the same images")
    show("Kinds", rows, f"{COUNT:,} photographs, the same bytes from every source.")


def show_rates(forms: dict[str, Path], rounds: int) -> None:
    """Whole runs, kind beside kind; ratios within a round."""
    kinds = ("folder", "tar", "zip", "parquet")
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for kind in kinds if turn % 2 == 0 else reversed(kinds):
            cache = BUILD / "sources.h5"
            for left in BUILD.glob("sources.h5*"):
                left.unlink()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            line = [sys.executable, "-m", "featurize", "run", str(forms[kind]), "-o", str(cache)]
            line += ["--backbone", "seedling", "--engine", "eager", "--json"]
            told = json.loads(subprocess.run(line, check=True, capture_output=True).stdout)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if told["computed"] != COUNT:
                raise SystemExit(f"{kind}: {told['computed']} computed")
            rates[kind].append(told["images_per_second"])
            cpu[kind].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    rows: list[Row] = []
    for kind in kinds:
        of_rates = [a / b for a, b in zip(rates[kind], rates["folder"], strict=True)]
        of_cpu = [a / b for a, b in zip(cpu[kind], cpu["folder"], strict=True)]
        rows.append({
            "source": kind,
            "images/s": statistics.median(rates[kind]),
            "of the folder's": statistics.median(of_rates),
            "lowest": min(of_rates),
            "highest": max(of_rates),
            "CPU s": statistics.median(cpu[kind]),
            "of the folder's CPU": statistics.median(of_cpu),
        })  # fmt: skip
    limit = f"Medians of {rounds} rounds. The limit: within 5 % of the folder's rate."
    show("Steady rates", rows, limit)


def tiny(count: int) -> dict[str, Path]:
    """Pictures of 8 x 8 pixels as shards and as Parquet."""
    from growth import tiny_images

    folder = tiny_images(count)
    home = BUILD / f"tiny-sources-{count}"
    for name, make in (
        ("tar", lambda at: pack_tars(folder, at, max(1, count // 10_000))),
        ("parquet", lambda at: pack_tables(folder, at, "parquet")),
    ):
        if not (home / name / ".whole").exists():
            (home / name).mkdir(parents=True, exist_ok=True)
            make(home / name)
            (home / name / ".whole").touch()
    return {"folder": folder, "tar": home / "tar", "parquet": home / "parquet"}


def once(images: str, cache: str) -> None:
    """One run in this process; prints what it took."""
    import torch

    from featurize import Backbone, run

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, stride=2))
    backbone = Backbone(net, name="tiny", preprocess=RECIPE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = run(images, cache, backbone=backbone, layers="0")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {"rows": done.rows, "computed": done.computed, "seconds": done.seconds}
    print(json.dumps(told | {"peak": peak / 1024, "grown": (peak - before) / 1024}))


def show_memory(counts: list[int]) -> None:
    """Peak memory of runs of more and more rows."""
    rows: list[Row] = []
    for count in counts:
        for kind, path in tiny(count).items():
            cache = BUILD / "tiny-sources.h5"
            for left in BUILD.glob("tiny-sources.h5*"):
                left.unlink()
            line = [sys.executable, __file__, "--once", str(path), str(cache)]
            threads = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(line, check=True, capture_output=True, text=True, env=threads)
            told = json.loads(done.stdout)
            rows.append({
                "source": kind,
                "rows": told["rows"],
                "rows/s": told["rows"] / told["seconds"],
                "peak MB": told["peak"],
                "of it the run's": told["grown"],
            })  # fmt: skip
    show(
        "Memory",
        rows,
        "The limit: flat, but for the listing: keys, places and what came with the images.",
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--once", nargs=2)
    given = options.parse_args()
    if given.once:
        once(*given.once)
        return
    print(describe())
    forms = packed(photos(COUNT))
    show_kinds(forms)
    show_rates(forms, given.rounds)
    show_memory([1_200, 50_000])


if __name__ == "__main__":
    main()
