"""Files behind a network: each costs itself alone, and no server can take more than its share."""

import multiprocessing
import pickle
import socket
import threading
import time

import pytest

from featurize.errors import CallError, ImageUnreadableError
from featurize.images import reading, reasons
from featurize.images.reading import ImageFile
from featurize.sources.stores import filesystems, http_client
from featurize.sources.stores.addresses import parse_address
from featurize.sources.stores.range_file import MAX_AHEAD_BYTES
from featurize.sources.stores.remote_store import RemoteStore, UrlStore

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(http_client, "MAX_PAUSE_SECONDS", 0.05)


@pytest.fixture
def unused_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]  # bound, and nobody listens


def read_one(url: str) -> ImageFile | ImageUnreadableError:
    ((_, image),) = UrlStore().read_files([url], [7])
    return image


def fail(url: str) -> ImageUnreadableError:
    image = read_one(url)
    assert isinstance(image, ImageUnreadableError), image
    assert SECRET not in str(image)
    return image


# --- what comes ------------------------------------------------------------------------------


def test_bytes_are_those_of_the_server(web):
    web.files = {f"/{k}.jpg": bytes([k]) * (k + 1) for k in range(100)}
    names = [f"{web.url}/{k}.jpg" for k in range(100)]
    images = dict(UrlStore().read_files(names, range(100)))
    assert [images[k].data for k in range(100)] == list(web.files.values())
    assert [images[k].stamp for k in range(100)] == list(range(100))
    assert len(web.requests) == 100  # one each, and no HEAD
    assert {method for method, *_ in web.requests} == {"GET"}


def test_requests_do_not_wait_for_each_other(web):
    web.seconds = 0.05
    web.files = {f"/{k}.jpg": b"x" * 20_000 for k in range(300)}
    start = time.perf_counter()
    images = list(UrlStore().read_files([web.url + path for path in web.files], [0] * 300))
    assert sum(isinstance(image, ImageFile) for _, image in images) == 300
    assert 300 / (time.perf_counter() - start) > 60  # one after another: 20


def test_a_bad_image_costs_itself_alone(web, unused_port):
    web.files = {"/good.jpg": b"good", "/empty.jpg": b"", "/fine.jpg": b"fine"}
    names = [
        f"{web.url}/good.jpg",
        f"{web.url}/gone.jpg",
        f"http://127.0.0.1:{unused_port}/x.jpg",
        "pipe:touch /tmp/x",
        f"{web.url}/empty.jpg",
        "s4://bucket/x.jpg",
        f"file:///etc/{SECRET}",
        "nosuch",
        f"{web.url}/fine.jpg",
    ]
    images = dict(UrlStore().read_files(names, range(9)))
    assert [getattr(images[k], "reason", 0) for k in range(9)] == [
        0,
        reasons.VANISHED,
        reasons.READ_ERROR,
        reasons.NO_PERMISSION,
        reasons.EMPTY,
        *[reasons.NO_PERMISSION] * 3,
        0,
    ]
    assert (images[0].data, images[8].data) == (b"good", b"fine")


def test_a_password_is_used_and_not_shown(web):
    web.files["/a.jpg"] = b"a"
    url = web.url.replace("://", f"://me:{SECRET}%40@")
    assert read_one(f"{url}/a.jpg?X-Amz-Signature={SECRET}").data == b"a"
    assert web.headers[0]["Authorization"] == "Basic bWU6aHVudGVyMkA="
    assert web.requests[0][1] == f"/a.jpg?X-Amz-Signature={SECRET}"
    assert fail(f"{url}/b.jpg?X-Amz-Signature={SECRET}").reason == reasons.VANISHED
    with pytest.raises(CallError) as caught:
        UrlStore().stat_file(f"{url}/b.jpg?X-Amz-Signature={SECRET}")
    assert SECRET not in str(caught.value)


def test_what_is_encoded_is_sent_as_it_stands(web):
    web.files = {"/a%2Fb%20c+.jpg": b"1", "/%C3%BC%20%5B.jpg": b"2"}
    assert read_one(f"{web.url}/a%2Fb%20c+.jpg?s=%2B%2f").data == b"1"
    assert web.requests[0][1] == "/a%2Fb%20c+.jpg?s=%2B%2f"
    assert read_one(f"{web.url}/ü %5B.jpg").data == b"2"


@pytest.mark.parametrize(
    ("status", "reason", "count"),
    [
        (401, reasons.NO_PERMISSION, 1),
        (403, reasons.NO_PERMISSION, 1),
        (404, reasons.VANISHED, 1),
        (410, reasons.VANISHED, 1),
        (418, reasons.READ_ERROR, 1),
        (204, reasons.READ_ERROR, 1),
        (429, reasons.READ_ERROR, 4),
        (500, reasons.READ_ERROR, 4),
        (503, reasons.READ_ERROR, 4),
    ],
)
def test_what_a_status_means(web, status, reason, count):
    web.replies["/a.jpg"] = lambda reply: reply.answer(status)
    assert fail(f"{web.url}/a.jpg?token={SECRET}").reason == reason
    assert len(web.requests) == count


def test_a_busy_server_is_asked_again(web):
    def reply(handler):
        if len(web.requests) < 3:
            handler.answer(503, **{"Retry-After": "0"})
        else:
            handler.answer(200, b"now")

    web.replies["/a.jpg"] = reply
    assert read_one(f"{web.url}/a.jpg").data == b"now"


# --- servers that lie ------------------------------------------------------------------------


def send_for_ever(handler):
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"x" * 65536)
    except OSError:
        handler.close_connection = True


def test_a_server_that_never_ends_is_cut(web, monkeypatch):
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 30 << 20)
    web.replies["/a.jpg"] = send_for_ever
    assert fail(f"{web.url}/a.jpg").reason == reasons.TOO_LARGE


def test_a_server_that_trickles_is_cut(web, monkeypatch):
    monkeypatch.setattr(http_client, "SECONDS_PER_FILE", 0.5)
    ended = threading.Event()

    def trickle(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not ended.wait(0.05):
            handler.wfile.write(b"x")

    web.replies["/a.jpg"] = trickle
    start = time.perf_counter()
    assert "within" in str(fail(f"{web.url}/a.jpg"))
    assert time.perf_counter() - start < 5
    ended.set()


def test_a_server_that_is_silent_is_left(web, monkeypatch):
    monkeypatch.setattr(http_client, "SILENCE_SECONDS", 0.2)
    ended = threading.Event()
    web.replies["/a.jpg"] = lambda handler: ended.wait(20)
    assert "silent" in str(fail(f"{web.url}/a.jpg"))
    ended.set()


@pytest.mark.parametrize("size", [10**12, 31 << 20])
def test_what_is_too_large_is_not_read(web, monkeypatch, size):
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 30 << 20)
    web.replies["/a.jpg"] = lambda reply: reply.answer(200, **{"Content-Length": str(size)})
    image = fail(f"{web.url}/a.jpg")
    assert (image.reason, f"{size:,} bytes" in str(image)) == (reasons.TOO_LARGE, True)


def test_what_is_cut_short_is_no_image(web):
    def reply(handler):
        handler.answer(200, b"half", **{"Content-Length": "8"})
        handler.close_connection = True

    web.replies["/a.jpg"] = reply
    image = fail(f"{web.url}/a.jpg")
    assert (image.reason, "cut short" in str(image)) == (reasons.READ_ERROR, True)


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", b"\0" * 100, b""]
)
def test_what_is_no_http(web, answer):
    def reply(handler):
        handler.wfile.write(answer)
        handler.close_connection = True

    web.replies["/a.jpg"] = reply
    assert fail(f"{web.url}/a.jpg").reason == reasons.READ_ERROR


def test_a_large_image_is_read_alone_and_whole(web):
    data = bytes(range(256)) * (40 << 10)  # 10 MiB
    web.files = {"/a.jpg": data, "/b.jpg": b"b"}

    def without_size(handler):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = True

    web.replies["/c.jpg"] = without_size
    names = [f"{web.url}/{name}.jpg" for name in "abc"]
    images = dict(UrlStore().read_files(names, [1, 2, 3]))
    assert (images[0].data == data, images[1].data, images[2].data == data) == (True, b"b", True)


def test_a_large_image_has_its_memory_reserved(web, monkeypatch):
    web.files["/a.jpg"] = b"x" * (9 << 20)
    monkeypatch.setattr("featurize.system.memory._get_available_bytes", lambda: 1000)
    assert fail(f"{web.url}/a.jpg").reason == reasons.NO_MEMORY


# --- redirects -------------------------------------------------------------------------------


def test_a_redirect_on_the_same_host_is_followed(web):
    web.files["/b.jpg"] = b"b"
    web.replies["/a.jpg"] = lambda reply: reply.answer(302, Location="/b.jpg?x=1")
    assert read_one(f"{web.url}/a.jpg").data == b"b"


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost:{port}/b.jpg",
        "http://127.0.0.1:{other}/b.jpg",
        "https://127.0.0.1:{port}/b.jpg",
        "//localhost:{port}/b.jpg",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "http://[bad",
        "",
    ],
)
def test_a_redirect_to_another_host_is_not_followed(web, location, unused_port):
    web.files["/b.jpg"] = b"b"
    location = location.format(port=web.server_port, other=unused_port)
    web.replies["/a.jpg"] = lambda reply: reply.answer(302, Location=location)
    url = web.url.replace("://", f"://me:{SECRET}@")
    image = fail(f"{url}/a.jpg")
    assert {path for _, path, _ in web.requests} == {"/a.jpg"}
    if location and "bad" not in location:
        assert (image.reason, "another host" in str(image)) == (reasons.NO_PERMISSION, True)


def test_redirects_end(web):
    web.replies["/a.jpg"] = lambda reply: reply.answer(302, Location="/a.jpg")
    assert "redirects more than" in str(fail(f"{web.url}/a.jpg"))
    assert len(web.requests) == http_client.MAX_REDIRECTS + 1


def test_neither_netrc_nor_cookies_are_sent(web, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    web.files["/a.jpg"] = b"a"
    web.replies["/b.jpg"] = lambda reply: reply.answer(200, b"b", **{"Set-Cookie": "a=1"})
    assert [read_one(f"{web.url}/{name}.jpg").data for name in "ba"] == [b"b", b"a"]
    assert not {"Authorization", "Cookie"} & {*web.headers[0], *web.headers[1]}


def test_headers_that_are_configured_for_fsspec_are_sent(web, monkeypatch):
    from fsspec.config import conf

    web.files["/a.jpg"] = b"a"
    kwargs = {"headers": {"Authorization": f"Bearer {SECRET}"}, "trust_env": True}
    monkeypatch.setitem(conf, "http", {"client_kwargs": kwargs})
    filesystems._open_once.cache_clear()
    assert read_one(f"{web.url}/a.jpg").data == b"a"
    assert web.headers[0]["Authorization"] == f"Bearer {SECRET}"
    filesystems._open_once.cache_clear()


def test_a_proxy_of_the_environment_is_asked(web, monkeypatch):
    web.replies["http://example.invalid/a.jpg"] = lambda reply: reply.answer(200, b"by proxy")
    monkeypatch.setenv("http_proxy", web.url)
    assert read_one("http://example.invalid/a.jpg").data == b"by proxy"


# --- parts of files --------------------------------------------------------------------------


def test_a_range_is_one_request(web):
    web.files["/a.bin"] = bytes(range(256))
    store = RemoteStore(parse_address(web.url))
    assert store.read_range("a.bin", 10, 20) == bytes(range(10, 20))
    assert web.requests == [("GET", "/a.bin", "bytes=10-19")]
    assert store.read_range("a.bin", 250, 300) == bytes(range(250, 256))
    assert store.read_range("a.bin", 256, 300) == b""
    assert store.read_range("a.bin", 5, 5) == b""
    with pytest.raises(ImageUnreadableError, match="is gone"):
        store.read_range("b.bin", 0, 1)


def test_a_server_without_ranges(web, monkeypatch):
    web.has_ranges, web.files["/a.bin"] = False, bytes(range(256))
    store = RemoteStore(parse_address(web.url))
    assert store.read_range("a.bin", 10, 20) == bytes(range(10, 20))
    assert store.stat_file("a.bin").size == 256
    with store.open_file("a.bin") as file:
        assert (file.seek(-6, 2), file.read()) == (250, bytes(range(250, 256)))
    monkeypatch.setattr(http_client, "MAX_SKIPPED_BYTES", 9)
    with pytest.raises(ImageUnreadableError, match="whole files only"):
        store.read_range("a.bin", 10, 20)


def test_other_bytes_than_were_asked_for(web):
    web.replies["/a.bin"] = lambda reply: reply.answer(
        206, b"0123456789", **{"Content-Range": "bytes 0-9/256"}
    )
    with pytest.raises(ImageUnreadableError, match="other bytes"):
        RemoteStore(parse_address(web.url)).read_range("a.bin", 10, 20)


def test_a_file_is_sought_in_as_one_of_this_machine(web, tmp_path):
    data = bytes(i * i % 251 for i in range(3_000_000))
    (tmp_path / "a.bin").write_bytes(data)
    web.files["/a.bin"] = data
    remote = RemoteStore(parse_address(web.url)).open_file("a.bin")
    steps = [(0, 0, 10), (-22, 2, 22), (1_000_000, 0, 300_000), (999_990, 0, 20), (0, 1, 7)]
    steps += [(2_999_999, 0, 50), (5, 2, 3), (1_200_000, 0, -1)]
    with remote, (tmp_path / "a.bin").open("rb") as local:
        for offset, whence, count in steps:
            assert remote.seek(offset, whence) == local.seek(offset, whence)
            assert remote.read(count) == local.read(count)
            assert remote.tell() == local.tell()
        with pytest.raises(ValueError, match="negative"):
            remote.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        remote.read(1)


def test_a_file_read_through_takes_few_requests(web):
    web.files["/a.bin"] = bytes(32 << 20)
    with RemoteStore(parse_address(web.url)).open_file("a.bin") as file:
        while file.read(512):
            file.seek(100_000, 1)
    assert len(web.requests) < 12
    assert max(len(range_) for *_, range_ in web.requests) < 30
    spans = [[int(x) for x in range_[6:].split("-")] for *_, range_ in web.requests]
    assert max(last - first for first, last in spans) < MAX_AHEAD_BYTES + 1000


def test_a_file_that_breaks_while_it_is_read(web):
    web.files["/a.bin"] = bytes(1000)
    with RemoteStore(parse_address(web.url)).open_file("a.bin") as file:
        web.replies["/a.bin"] = lambda reply: reply.answer(403)
        with pytest.raises(PermissionError):
            file.read(1)
        web.replies["/a.bin"] = lambda reply: reply.answer(404)
        with pytest.raises(FileNotFoundError):
            file.read(1)
        web.replies["/a.bin"] = lambda reply: reply.answer(
            206, b"12", **{"Content-Range": "bytes 0-1/1000"}
        )
        with pytest.raises(OSError, match="2 bytes came"):
            file.read(10)


@pytest.mark.parametrize(
    ("header", "value"), [("ETag", '"abc"'), ("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")]
)
def test_the_stamp_of_a_web_file(web, header, value):
    web.replies["/a.tar"] = lambda reply: reply.answer(200, b"12345", **{header: value})
    store = RemoteStore(parse_address(web.url))
    before = store.stat_file("a.tar")
    assert (before.size, before.stamp > 0) == (5, True)
    assert store.stat_file("a.tar") == before
    web.replies["/a.tar"] = lambda reply: reply.answer(200, b"12345", **{header: value + "1"})
    assert store.stat_file("a.tar").stamp != before.stamp
    web.files["/b.tar"] = b"1"
    assert store.stat_file("b.tar").stamp == 0
    with pytest.raises(CallError, match="do not list"):
        list(store.list_files())


# --- other stores ----------------------------------------------------------------------------


def test_a_store_in_memory(in_memory):
    in_memory(
        {"/box/a/1.jpg": b"one", "/box/2.jpg": b"two", "/box/.h/3.jpg": b"3", "/other/4": b""}
    )
    store = RemoteStore(parse_address("memory://box"))
    files = {file.name: file for file in store.list_files()}
    assert {name: file.size for name, file in files.items()} == {"a/1.jpg": 3, "2.jpg": 3}
    assert [file.name for file in store.list_files("a")] == ["a/1.jpg"]
    images = dict(store.read_files(["2.jpg", "no.jpg", "a/1.jpg"], [4, 5, 6]))
    assert (images[0], images[2]) == (ImageFile(b"two", 3, 4), ImageFile(b"one", 3, 6))
    assert images[1].reason == reasons.VANISHED
    assert store.read_range("a/1.jpg", 1, 9) == b"ne"
    with store.open_file("2.jpg") as file:
        assert file.read() == b"two"
    with pytest.raises(CallError, match="is gone"):
        store.stat_file("a")
    with pytest.raises(ImageUnreadableError, match="is gone"):
        store.open_file("no.jpg")


def test_what_is_there_now_is_listed(in_memory):
    in_memory({"/box/1.jpg": b"one"})
    store = RemoteStore(parse_address("memory://box"))
    (before,) = store.list_files()
    in_memory({"/box/1.jpg": b"two", "/box/2.jpg": b"x"})
    after = {file.name: file for file in store.list_files()}
    assert after.keys() == {"1.jpg", "2.jpg"}
    assert after["1.jpg"].stamp != before.stamp


def test_a_missing_package_is_named(monkeypatch):
    with pytest.raises(CallError, match="pip install gcsfs"):
        list(RemoteStore(parse_address("gs://bucket")).list_files())
    (image,) = [image for _, image in UrlStore().read_files(["az://box/a.jpg"], [0])]
    assert "pip install adlfs" in str(image)


def read_in_child(store, sender):
    sender.send([image.data for _, image in store.read_files(["a.jpg"], [0])])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside threads
def test_a_child_has_connections_of_its_own(web):
    web.files["/a.jpg"] = b"a"
    store = RemoteStore(parse_address(web.url))
    assert dict(store.read_files(["a.jpg"], [0]))[0].data == b"a"
    assert pickle.loads(pickle.dumps(store)) == store  # noqa: S301
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    child = context.Process(target=read_in_child, args=(store, sender), daemon=True)
    child.start()
    assert receiver.poll(60)
    assert receiver.recv() == [b"a"]
    child.join()
