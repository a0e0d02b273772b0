"""What waits for a network: many requests at once, a run that ends when told to, few requests."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

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


@pytest.mark.long
def test_many_requests_are_in_flight_and_the_network_is_the_bound(run, images, tmp_path):
    with Server(images, seconds=1.0) as server:
        urls = list_urls(server, images, tmp_path / "l.csv")
        done = run(urls, tmp_path / "c.h5", *QUICK)
        assert (done.computed, done.failed) == (len(images), 0)
        assert (done.bound, server.most_in_hand) == ("network", len(images))
        assert len(server.paths) == len(images)


@pytest.mark.long
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


@pytest.mark.long
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


class Bucket:
    """Puts files into a bucket, and counts the requests of whoever reads it."""

    def __init__(self, client: Any, lines: list[tuple[str, str]]) -> None:
        self._client, self.lines = client, lines

    def put(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            self._client.put_object(Bucket="photos", Key=name, Body=data)
        self.lines.clear()

    def take(self) -> tuple[int, int, int]:
        """Count listings, other GETs and HEADs since the last call."""
        lines = self.lines.copy()
        self.lines.clear()
        assert lines
        gets = [path for method, path in lines if method == "GET"]
        n_listings = sum("list-type" in path for path in gets)
        return n_listings, len(gets) - n_listings, sum(method == "HEAD" for method, _ in lines)


@pytest.fixture(scope="module")
def bucket():
    """One server for all: a process opens a store once."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    lines: list[tuple[str, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        patch.setattr(
            "werkzeug.serving.WSGIRequestHandler.log_request",
            lambda handler, *_: lines.append((handler.command, handler.path)),
        )
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="photos")
        yield Bucket(client, lines)
        server.stop()


@pytest.mark.slow
def test_requests_to_a_bucket(bucket, toy_run, toy, tmp_path):
    images, cache = draw_images(300, side=8), tmp_path / "c.h5"
    bucket.put({f"photos/{name}": data for name, data in images.items()})
    estimate = toy_run("s3://photos/photos", tmp_path / "none.h5", dry_run=True)
    assert estimate.rows == 300
    n_listings, _, n_heads = bucket.take()  # and a few images are timed
    assert (n_listings <= 3, n_heads) == (True, 0)
    done = toy_run("s3://photos/photos", cache)
    assert (done.rows, done.computed, done.failed) == (300, 300, 0)
    n_listings, n_gets, n_heads = bucket.take()
    assert (n_listings <= 3, n_gets, n_heads) == (True, 300, 0)
    again = toy_run("s3://photos/photos", cache)
    assert (again.computed, again.reused) == (0, 300)
    n_listings, n_gets, n_heads = bucket.take()
    assert (n_listings <= 3, n_gets, n_heads) == (True, 0, 0)
    name = next(iter(images))
    bucket.put({f"photos/{name}": images[name], "photos/new.jpg": draw_images(1, 9).popitem()[1]})
    more = toy_run("s3://photos/photos", cache)
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
    done = toy_run("s3://photos/wds", cache, **options)
    assert (done.rows, done.computed, done.failed) == (1200, 1200, 0)
    n_listings, n_gets, n_heads = bucket.take()
    print(f"{n_gets} GET, {n_listings} listings, {n_heads} HEAD; scratch: {scratch}")
    assert n_listings <= 3
    assert n_gets + n_heads <= 40
    again = toy_run("s3://photos/wds", cache, **options)
    assert (again.computed, again.reused) == (0, 1200)
    n_listings, n_gets, n_heads = bucket.take()
    assert (n_listings <= 3, n_gets, n_heads) == (True, 0, 0)
