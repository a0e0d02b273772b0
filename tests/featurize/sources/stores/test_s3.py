"""S3, by a server on this machine that counts requests."""

import time
from collections import Counter

import pytest

from featurize.errors import CallError
from featurize.images import reasons
from featurize.sources.listing import read_images
from featurize.sources.opening import describe_source, open_source
from featurize.sources.stores import filesystems
from featurize.sources.stores.addresses import parse_address
from featurize.sources.stores.remote_store import RemoteStore, UrlStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of botocore's
]
SECRET = "hunter2secret"


@pytest.fixture(scope="module")
def requests():
    """Every request to the server: method and path."""
    return []


@pytest.fixture(scope="module")
def client(requests):
    """A client of a server with one bucket, named by the environment."""
    import boto3
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            WSGIRequestHandler,
            "log_request",
            lambda handler, *_: requests.append((handler.command, handler.path)),
        )
        server = ThreadedMotoServer("127.0.0.1", 0)
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
        client.create_bucket(Bucket="pictures")
        for k in range(300):
            put(client, f"photos/{k % 3}/{k:03}.jpg", b"%d" % k * 1000)
        put(client, "photos2/other.jpg", b"x")
        yield client
        client.close()
        server.stop()


def put(client, key, data):
    client.put_object(Bucket="pictures", Key=key, Body=data)


def count(requests):
    counts = Counter(method for method, _ in requests)
    requests.clear()
    return counts


def test_requests_are_counted(client, requests):
    requests.clear()
    listing = open_source("s3://pictures/photos").list_images()
    assert len(listing.paths) == 300
    counts = count(requests)
    assert (counts["HEAD"], counts["GET"] <= 3, counts.total() > 0) == (0, True, True)
    start = time.perf_counter()
    read = {read.row: read.image for read in read_images(listing, range(300))}
    print(f"{300 / (time.perf_counter() - start):.0f} objects/s")
    expected = [b"%d" % int(path[-7:-4]) * 1000 for path in listing.paths]
    assert [read[row].data for row in range(300)] == expected
    assert [read[row].stamp for row in range(300)] == listing.stamps.tolist()
    assert count(requests) == {"GET": 300}


def test_an_object_put_again_is_unchanged_until_its_bytes_change(client):
    source = open_source("s3://pictures/photos")
    before = source.list_images()
    put(client, "photos/0/000.jpg", b"0" * 1000)
    assert (open_source("s3://pictures/photos").list_images().stamps == before.stamps).all()
    put(client, "photos/0/000.jpg", b"1" * 1000)
    changed = open_source("s3://pictures/photos").list_images().stamps != before.stamps
    assert changed.nonzero()[0].tolist() == [0]
    put(client, "photos/0/000.jpg", b"0" * 1000)


def test_odd_objects_cost_themselves_alone(client, requests):
    large = bytes(range(256)) * (40 << 10)
    odd = {"a b#?&ü%41.jpg": b"odd", "empty.jpg": b"", "large.jpg": large, "d.jpg/": b""}
    for name, data in odd.items():
        put(client, f"odd/{name}", data)
    listing = open_source("s3://pictures/odd").list_images()
    assert listing.paths == ["a b#?&ü%41.jpg", "empty.jpg", "large.jpg"]
    read = {read.row: read.image for read in read_images(listing, range(3))}
    assert (read[0].data, read[1].reason, read[2].data == large) == (b"odd", reasons.EMPTY, True)
    client.delete_object(Bucket="pictures", Key="odd/large.jpg")
    (gone,) = read_images(listing, [2])
    assert gone.image.reason == reasons.VANISHED
    names = ["s3://pictures/odd/empty.jpg", "s3://pictures/photos/1/001.jpg", "s3://none/x.jpg"]
    images = dict(UrlStore().read_files(names, [1, 2, 3]))
    assert [getattr(images[i], "reason", 0) for i in range(3)] == [1, 0, reasons.VANISHED]


def test_parts_of_an_object(client, requests):
    store = RemoteStore(parse_address("s3://pictures/photos"))
    requests.clear()
    assert store.read_range("1/001.jpg", 10, 20) == b"1" * 10
    assert count(requests) == {"GET": 1}
    assert store.read_range("1/001.jpg", 990, 5000) == b"1" * 10
    assert store.read_range("1/001.jpg", 5000, 6000) == b""
    requests.clear()
    with store.open_file("1/001.jpg") as file:
        assert (file.seek(-5, 2), file.read()) == (995, b"1" * 5)
        assert (file.seek(3), file.read(4)) == (3, b"1111")
    assert count(requests) == {"HEAD": 1, "GET": 2}


def test_shards_are_found_by_pattern(client, requests):
    from ..test_opening import make_tar

    for k in range(40):
        put(client, f"wds/s-{k:02}.tar", make_tar({f"{k}.jpg": b"%d" % k}))
    requests.clear()
    source = open_source("s3://pictures/wds/s-{00..39}.tar")
    assert count(requests) == {"GET": 1}
    assert describe_source(source) == "s3://pictures/wds: tar shards, 40 files"
    assert source == open_source("s3://pictures/wds/*.tar")
    few = open_source("s3://pictures/wds/s-{03..05}.tar")
    assert few.list_images().paths == ["s-03.tar/3.jpg", "s-04.tar/4.jpg", "s-05.tar/5.jpg"]
    single = open_source("s3://pictures/wds/s-03.tar")
    assert (single.kind, single.root) == ("tar file", "s3://pictures/wds/s-03.tar")


@pytest.mark.parametrize(
    ("where", "match"),
    [
        ("s3://pictures/photso", "there is nothing in s3://pictures/photso"),
        ("s3://nobucket/photos", "there is nothing in s3://nobucket/photos"),
        ("s3://pictures/photos/0/000.jpg", "is one image"),
        ("s3://pictures/*.tar", r"no file matches s3://pictures/\*\.tar"),
        ("s3://pictures/no.tar", "there is nothing in"),
    ],
)
def test_what_is_said_of_what_is_not_there(client, where, match):
    with pytest.raises(CallError, match=match):
        open_source(where)


def test_keys_in_the_url_are_used_and_not_shown(client):
    where = f"s3://key:{SECRET}%2Fmore@pictures/photos?X-Amz-Signature={SECRET}"
    source = open_source(where)
    listing = source.list_images()
    filesystem = filesystems.open_filesystem(parse_address(where))
    assert (filesystem.key, filesystem.secret) == ("key", f"{SECRET}/more")
    said = [repr(source), source.root, repr(listing), str(source.describe()), str(listing.skipped)]
    client.delete_object(Bucket="pictures", Key="photos/0/003.jpg")
    said += [str(read.image) for read in read_images(listing, [1])]
    put(client, "photos/0/003.jpg", b"3" * 1000)
    for wrong in ("s3://key:{}@nobucket/x", "s3://key:{}@pictures/none", "s3://key:{}/x@b/y"):
        with pytest.raises(CallError) as caught:
            open_source(wrong.format(SECRET))
        said.append(str(caught.value))
    assert not [text for text in said if SECRET in text]


def test_a_server_that_is_not_there_is_said_in_one_line(client, monkeypatch, capfd):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(CallError, match="s3://pictures/photos cannot be read: Could not connect"):
        # Other keys, or the open connection would serve it.
        open_source(f"s3://other:{SECRET}@pictures/photos")
    assert capfd.readouterr() == ("", "")


def test_without_keys_it_is_said_how_to_give_them(client, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    filesystems._open_once.cache_clear()
    with pytest.raises(CallError, match=r"may not be read: set AWS_.*FSSPEC_S3_ANON=true"):
        open_source("s3://pictures/photos")
    filesystems._open_once.cache_clear()
