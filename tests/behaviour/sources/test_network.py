"""What waits for a network: many requests at once, a run that ends when told to, few requests."""

import logging
import os
import re
import signal
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest

import featurize

from ..attack.starting import Starter
from .making import (
    Server,
    assert_same_features,
    draw_images,
    read_features,
    write_csv,
    write_folder,
    write_shards,
)

QUICK = ("--backbone", "seedling", "--layers", "stem:max")


@pytest.fixture(autouse=True)
def _remote():
    pytest.importorskip("aiohttp")


def list_urls(server, images, path):
    return write_csv(path, [f"{server.url}/{name}" for name in images], ("url", "label"))


def test_many_requests_are_in_flight_and_the_network_is_the_bound(run, images, tmp_path):
    with Server(images, seconds=1.0) as server:
        urls = list_urls(server, images, tmp_path / "l.csv")
        done = run(urls, tmp_path / "c.h5", *QUICK)
        assert (done.computed, done.failed) == (len(images), 0)
        assert (done.bound, server.most_in_hand) == ("network", len(images))
        assert len(server.paths) == len(images)


def test_requests_are_bounded(run, tmp_path):
    images = draw_images(200, side=8)
    with Server(images, seconds=0.2) as server:
        done = run(list_urls(server, images, tmp_path / "l.csv"), tmp_path / "c.h5", *QUICK)
        assert (done.computed, done.failed) == (200, 0)
        assert 32 <= server.most_in_hand <= 256


@pytest.fixture(scope="module")
def starter():
    starter = Starter()
    yield starter
    starter.end()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("source", ["urls", "shards"])
def test_a_run_that_waits_for_a_server_ends_when_told_to(starter, images, tmp_path, sign, source):
    files = dict(images)
    for shard in write_shards(tmp_path / "s", images, 12).iterdir():
        files[f"s/{shard.name}"] = shard.read_bytes()
    with Server(files, seconds=60) as server:
        where = list_urls(server, images, tmp_path / "l.csv")
        if source == "shards":
            where = f"{server.url}/s/shard-{{000000..000001}}.tar"
        started = starter.start("featurize", "run", where, "-o", tmp_path / "c.h5", *QUICK)
        end = time.monotonic() + 60
        while not server.in_hand and started.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert server.in_hand, started.err
        time.sleep(0.3)
        sent = time.monotonic()
        started.send(sign)
        ended = started.wait(30)
        seconds = time.monotonic() - sent
    assert ended.code == 3, ended.said
    assert seconds < 3, (seconds, ended.said)
    assert "Traceback" not in ended.err
    if (tmp_path / "c.h5").exists():
        assert featurize.FeatureCache(tmp_path / "c.h5").verify() == []
        assert not (tmp_path / "c.h5.part").exists()


@pytest.mark.slow
def test_the_rate_from_a_server_of_fifty_milliseconds(run, tmp_path, capsys):
    """No limit on time: the rate is shown, and how it is reached is checked."""
    images = draw_images(300)
    with Server(images, seconds=0.05) as server:
        urls = list_urls(server, images, tmp_path / "l.csv")
        start = time.perf_counter()
        done = run(urls, tmp_path / "c.h5", *QUICK)
        seconds = time.perf_counter() - start
        assert (done.computed, done.failed, len(server.paths)) == (300, 0, 300)
        assert server.most_in_hand >= 16
    with capsys.disabled():
        rate = f"{300 / done.seconds:.0f} images/s, {300 / seconds:.0f} with start-up"
        print(f"\n300 images, 50 ms a request: {rate}; bound {done.bound}", file=sys.stderr)


# --- S3, as moto plays it ---------------------------------------------------------------------


class Requests(logging.Handler):
    """Requests that moto's server logs: ``("GET", "/bucket/name")``."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if match := re.search(r'"([A-Z]+) (\S+) HTTP', record.getMessage()):
            self.lines.append((match[1], match[2]))

    def take(self) -> tuple[Counter[str], int]:
        """Count requests by method since the last call; and the listings among them."""
        lines, self.lines = self.lines, []
        listings = [path for method, path in lines if method == "GET" and "list-type" in path]
        return Counter(method for method, _ in lines), len(listings)


@pytest.fixture
def bucket(monkeypatch):
    """Puts files into a bucket; and the requests of whoever reads it."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    requests, logger = Requests(), logging.getLogger("werkzeug")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(requests)
    logger.setLevel(logging.INFO)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="b")

    def put(files):
        for name, data in files.items():
            client.put_object(Bucket="b", Key=name, Body=data)
        requests.take()

    yield SimpleNamespace(put=put, requests=requests)
    server.stop()
    logger.removeHandler(requests)


@pytest.mark.slow
def test_requests_to_a_bucket(bucket, toy_run, toy, tmp_path):
    images, cache = draw_images(300, side=8), tmp_path / "c.h5"
    bucket.put({f"photos/{name}": data for name, data in images.items()})
    estimate = toy_run("s3://b/photos", tmp_path / "none.h5", dry_run=True)
    assert estimate.rows == 300
    methods, listings = bucket.requests.take()
    assert (methods["HEAD"], listings <= 3) == (0, True), methods
    done = toy_run("s3://b/photos", cache)
    assert (done.rows, done.computed, done.failed) == (300, 300, 0)
    methods, listings = bucket.requests.take()
    assert listings <= 3
    assert (methods["HEAD"], methods["GET"] - listings) == (0, 300)
    again = toy_run("s3://b/photos", cache)
    assert (again.computed, again.reused) == (0, 300)
    methods, listings = bucket.requests.take()
    assert (methods["HEAD"], methods["GET"] - listings, listings <= 3) == (0, 0, True)
    name = next(iter(images))
    bucket.put({f"photos/{name}": images[name], "photos/new.jpg": draw_images(1, 9).popitem()[1]})
    more = toy_run("s3://b/photos", cache)
    assert (more.rows, more.computed) == (301, 1)
    fresh = tmp_path / "fresh.h5"
    featurize.run(write_folder(tmp_path / "f", images), fresh, backbone=toy, layers="0")
    found = read_features(cache)
    assert_same_features(
        {digest: found[digest] for digest in read_features(fresh)}, read_features(fresh)
    )


@pytest.mark.slow
@pytest.mark.parametrize("scratch", [False, True])
def test_requests_to_shards_in_a_bucket(bucket, toy_run, tmp_path, scratch):
    images, cache = draw_images(1200, side=8), tmp_path / "c.h5"
    shards = write_shards(tmp_path / "shards", images, 400)
    bucket.put({f"wds/{path.name}": path.read_bytes() for path in shards.iterdir()})
    options = {"scratch": str(tmp_path / "scratch")} if scratch else {}
    (tmp_path / "scratch").mkdir()
    done = toy_run("s3://b/wds", cache, **options)
    assert (done.rows, done.computed, done.failed) == (1200, 1200, 0)
    methods, listings = bucket.requests.take()
    assert methods["GET"] - listings <= 40 + 3
    assert methods["HEAD"] == 0
    again = toy_run("s3://b/wds", cache, **options)
    assert (again.computed, again.reused) == (0, 1200)
    methods, listings = bucket.requests.take()
    assert (methods["HEAD"], methods["GET"] - listings, listings <= 3) == (0, 0, True)
