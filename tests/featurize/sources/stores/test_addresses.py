"""Which URLs are read, and that nothing secret of them is shown."""

import pickle

import pytest

from featurize.errors import CallError
from featurize.sources.stores.addresses import (
    is_address,
    parse_address,
    redact,
    redact_message,
)
from featurize.sources.stores.expansion import expand_braces, split_pattern
from featurize.sources.stores.remote_store import RemoteStore

SECRET = "hunter2"

# --- what is read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a/b.tar", "s3://bucket/a/b.tar"),
        ("S3://bucket", "s3://bucket"),
        ("s3://bucket/my photos/ü#1?.jpg", "s3://bucket/my photos/ü#1?.jpg"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
        ("hf://datasets/user/name@main/data", "hf://datasets/user/name@main/data"),
        ("https://host:8443/a.jpg?id=3&size=big", "https://host:8443/a.jpg?id=3&size=big"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("http://host/a#part", "http://host/a"),
        ("memory://a", "memory://a"),
    ],
)
def test_what_is_read(text, shown):
    assert str(parse_address(text)) == redact(text).replace("S3:", "s3:") == shown
    assert is_address(text)


@pytest.mark.parametrize(
    ("text", "path"),
    [("file:///a/b%20c", "/a/b c"), ("file:/a/b", "/a/b"), ("FILE://localhost/a", "/a")],
)
def test_a_url_of_this_machine(text, path):
    assert (parse_address(text).protocol, parse_address(text).path) == ("file", path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (f"pipe:touch {SECRET}", "URLs begin with one of"),
        (f"reference://x/{SECRET}", "URLs begin with one of"),
        (f"simplecache::s3://k:{SECRET}@b/x", "URLs begin with one of"),
        (f"memory://x::file:///{SECRET}", "chains of URLs"),
        (f"http://[::1]/x::http://{SECRET}", "chains of URLs"),
        (f"s3b://bucket/{SECRET}", r"did you mean 's3'\?"),
        (f"htps://host/{SECRET}", r"did you mean 'https'\?"),
        (f"github://user:{SECRET}@a/b", "URLs begin with one of"),
        (f"s3:/bucket/{SECRET}", "two slashes"),
        (f"s3:///{SECRET}", "begins with a bucket"),
        (f"s3://k:{SECRET}/x@bucket/a", "KEY:SECRET@bucket"),
        (f"s3://:{SECRET}@bucket/a", "KEY:SECRET@bucket"),
        (f"gs://user:{SECRET}@bucket/a", "takes no credentials"),
        (f"http://user:{SECRET}/a@host/x", "port .* is no number"),
        (f"http://:80/{SECRET}", "no valid host"),
        (f"http://host\\@other/{SECRET}", "no valid host"),
        (f"s3://bucket/../{SECRET}", r"with \. or \.\."),
        (f"http://host/a/%2e%2e/{SECRET}", r"with \. or \.\."),
        (f"s3://bucket/\x1b[2J{SECRET}", "control characters"),
        (f"s3://bucket/\n{SECRET}", "control characters"),
        (f"s3://bucket/\udcff{SECRET}", "control characters"),
        (f"s3://bucket/{SECRET}" + "x" * 5000, "at most 4,096"),
        (f"file://host/{SECRET}", "three slashes"),
        (f"file:{SECRET}", "three slashes"),
        (SECRET, "URLs begin with one of"),
    ],
)
def test_what_is_refused_says_nothing_of_it(text, match):
    with pytest.raises(CallError, match=match) as caught:
        parse_address(text)
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["photos", "a/b.tar", "/x:y", "C:x", "a:b.csv", "./s3", ""])
def test_what_is_a_path(text):
    assert not is_address(text)


@pytest.mark.parametrize("text", ["pipe:x", "zip::s3://b", "ssh://h", "s3:/b", "file:/a"])
def test_what_is_meant_as_a_url(text):
    assert is_address(text)


# --- secrets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"s3://key:{SECRET}@bucket/a", "s3://bucket/a"),
        (f"s3://{SECRET}:a%2Fb@bucket/a", "s3://bucket/a"),
        (f"s3://bucket/a.tar?X-Amz-Signature={SECRET}", "s3://bucket/a.tar"),
        (f"https://me:{SECRET}@host/a?b=1", "https://host/a?b=1"),
        (f"https://{SECRET}@host/a", "https://host/a"),
        (
            f"https://h/a?X-Amz-Credential={SECRET}&id=7&X-Amz-Signature={SECRET}",
            "https://h/a?id=7",
        ),
        (f"https://h/a?X%2DAmz%2DSignature={SECRET}", "https://h/a"),
        (f"https://h/a?AWSAccessKeyId={SECRET}&Expires=1&Signature={SECRET}", "https://h/a"),
        (f"https://h/a?GoogleAccessId={SECRET}&X-Goog-Signature={SECRET}", "https://h/a"),
        (f"https://h/a?v=1&access_token={SECRET}", "https://h/a?v=1"),
        (f"https://h/a?apikey={SECRET}&auth={SECRET}&author=x", "https://h/a?author=x"),
        (f"https://h/a?st=3&se={SECRET}&sig={SECRET}&sv=2021", "https://h/a"),
        ("https://h/a?st=3&se=4", "https://h/a?st=3&se=4"),
        (f"az://box/a.tar?sv=1&sig={SECRET}", "az://box/a.tar"),
        (f"https://h/a#access_token={SECRET}", "https://h/a"),
    ],
)
def test_secrets_are_kept_and_not_shown(text, shown):
    address = parse_address(text)
    assert redact(text) == str(address) == shown
    store = RemoteStore(address)
    said = [repr(address), repr(store), store.root, str(address), f"{address}"]
    assert not any(SECRET in text for text in said)
    if SECRET in text.partition("#")[0] and not shown.startswith("s3://bucket/a.tar"):
        assert SECRET in address.user + address.password + address.query
    assert pickle.loads(pickle.dumps(store)).address == address  # noqa: S301


@pytest.mark.parametrize(
    "text",
    [
        f"s3://key:{SECRET}/more@bucket/a",
        f"s3://key:12/{SECRET}@bucket/a",
        f"http://user:{SECRET}/more@host/a",
        f"simplecache::s3://key:{SECRET}@bucket/a",
        f"http://[::1]:80/x?sig={SECRET}",
        f"http://u:{SECRET}@[::1]:80/x",
        f"https://proxy/?url=https://me:{SECRET}@host/a",
        f"https://proxy/?url=https%3A%2F%2Fme:{SECRET}%40host",
        f"x?Signature={SECRET}",
        f"nosuch://a:{SECRET}@b",
    ],
)
def test_nothing_is_shown_of_what_is_not_valid_either(text):
    assert SECRET not in redact(text)


def test_messages_of_libraries_are_cleaned():
    said = f"no route to 'https://me:{SECRET}@host/a?sig={SECRET}', nor s3://k:{SECRET}@b/x."
    assert redact_message(said) == "no route to 'https://host/a', nor s3://b/x."


# --- braces and stars ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{08..10}.tar", ["s-08.tar", "s-09.tar", "s-10.tar"]),
        ("s-{8..10}", ["s-8", "s-9", "s-10"]),
        ("s-{2..0}", ["s-2", "s-1", "s-0"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("x{,.b}.tar", ["x.tar", "x.b.tar"]),
        ("{id}.tar", ["{id}.tar"]),
        ("{000..063}", [f"{k:03}" for k in range(64)]),
    ],
)
def test_braces(text, names):
    assert expand_braces(text) == names


@pytest.mark.parametrize(
    "text", ["{0..9999999}", "{0..999}{0..999}{0..999}", "{0..99999999999999999}" * 9, "{a..c}"]
)
def test_braces_are_bounded(text):
    with pytest.raises(CallError, match="braces"):
        expand_braces(text)


def test_where_a_pattern_begins():
    assert split_pattern("a/b/c-{0..1}/*.tar") == ("a/b", "c-{0..1}/*.tar")
    assert split_pattern("/a/*") == ("/a", "*")
    assert split_pattern("*.tar") == ("", "*.tar")
    assert split_pattern("a/b[.tar") == ("a/b[.tar", "")
