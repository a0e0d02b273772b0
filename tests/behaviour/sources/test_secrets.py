"""Credentials and signatures are used, and are nowhere: not in a file, not in what is said."""

import base64
import gzip
from pathlib import Path

import pytest

from .conftest import COUNT, SEEDLING
from .making import Server, read_keys, write_csv, write_shards

SECRETS = ("hunter2secret", "sigsecret", "toksecret", "keysecret")
PASSWORD, SIGNATURE, TOKEN, KEY = SECRETS
QUERY = f"X-Amz-Signature={SIGNATURE}&token={TOKEN}"


@pytest.fixture(autouse=True)
def _remote():
    pytest.importorskip("aiohttp")
    pytest.importorskip("s3fs")


def find_secrets(folder: Path, *texts: str) -> list[str]:
    """Where secrets are: files and texts, as they are or as they may be packed."""
    found = []
    contents = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents |= {f"text {i}": text.encode() for i, text in enumerate(texts)}
    for name, content in contents.items():
        views = [content]
        if content[:2] == b"\x1f\x8b":
            views.append(gzip.decompress(content))
        for secret in SECRETS:
            forms = [secret.encode(), base64.b64encode(secret.encode()).rstrip(b"=")]
            if any(form in view for form in forms for view in views):
                found.append(f"{secret} in {name}")
    return found


def test_the_search_finds(tmp_path):
    (tmp_path / "a").write_text(f"x{TOKEN}y")
    assert find_secrets(tmp_path, PASSWORD) == [
        f"{TOKEN} in {tmp_path / 'a'}",
        f"{PASSWORD} in text 0",
    ]


@pytest.mark.slow
def test_nothing_secret_is_left_of_a_list_and_of_shards(command, images, tmp_path):
    """Each verb, with names, heads and a page; of images some of which cannot be read."""
    pytest.importorskip("bokeh")
    packed = write_shards(tmp_path / "packed", images, 12)
    files = {**images, **{f"s/{path.name}": path.read_bytes() for path in packed.iterdir()}}
    outputs, texts = tmp_path / "outputs", []
    outputs.mkdir()

    def call(name, *arguments, code=0):
        done = command(name, *arguments, cwd=outputs)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        texts.extend((done.stdout, done.stderr))

    with Server(files) as server:
        url = server.url.replace("://", f"://{KEY}:{PASSWORD}@")
        urls = [f"{url}/{name}?{QUERY}" for name in images]
        missing = [f"{url}/{folder}/gone.jpg?{QUERY}" for folder in ("a", "b")]
        listed = write_csv(tmp_path / "urls.csv", [*urls, *missing], ("url", "label"))
        text = listed.read_text().replace(f"gone.jpg?{QUERY}", f"gone.jpg?{QUERY}#x")
        listed.write_text(text)
        shards = f"{url}/s/shard-{{000000..000001}}.tar?{QUERY}"
        for source, cache in ((listed, "l.h5"), (shards, "s.h5")):
            call("featurize", "run", source, "-o", cache, *SEEDLING, "--dry-run")
            call("featurize", "run", source, "-o", cache, *SEEDLING)
            call("featurize", "run", source, "-o", cache, "--json", "--debug")
            call("featurize", "run", source, "-o", cache, "--rehash")
            call("featurize", "info", cache)
            call("featurize", "info", cache, "--json")
            call("featurize", "verify", cache, source)
            call("featurize", "export", cache, "-o", f"{cache}.npz")
            call("classify", "fit", cache, "-o", f"{cache}.head", "--head", "ncm", "--json")
            missed = 3 if cache == "l.h5" else 0
            call("classify", "predict", f"{cache}.head", cache, code=missed)
            call("classify", "report", cache, "-o", f"{cache}.html", "--heads", "ncm")
        assert len(read_keys(outputs / "s.h5")) == COUNT
        assert sum("?" in path for path in server.paths) >= COUNT  # they were sent
    assert find_secrets(outputs, *texts) == []


@pytest.mark.parametrize(
    "source",
    [
        f"s3://{KEY}:{PASSWORD}@bucket/x?X-Amz-Signature={SIGNATURE}",
        f"s3://{KEY}:{PASSWORD}@bucket/x.tar?X-Amz-Signature={SIGNATURE}",
        f"https://{KEY}:{PASSWORD}@127.0.0.1:9/x.zip?token={TOKEN}",
        f"https://{KEY}:{PASSWORD}@127.0.0.1:9/x?sig={SIGNATURE}",
        f"https://{KEY}:{PASSWORD}@127.0.0.1:port/x.zip",
        f"htps://{KEY}:{PASSWORD}@host/x.zip?token={TOKEN}",
        f"simplecache::https://{KEY}:{PASSWORD}@host/x.zip",
        f"gs://{KEY}:{PASSWORD}@bucket/x",
        f"https://host/x.zip?a=b&api_key={KEY}",
        f"https://{KEY}:{PASSWORD}@host/\x01",
    ],
)
def test_errors_tell_no_secret(command, tmp_path, monkeypatch, source):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    line = ("run", source, "-o", tmp_path / "c.h5", *SEEDLING, "--json", "--debug")
    done = command("featurize", *line)
    assert done.returncode == 2, done.stderr
    assert find_secrets(tmp_path, done.stdout, done.stderr) == []
