"""Lists of images: what they name is read, and nothing else."""

import json
import os
import pickle
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurize.errors import CallError, UnknownPathError
from featurize.images import reasons
from featurize.images.reading import ImageFile
from featurize.sources.listing import make_stamp, read_images
from featurize.sources.manifest import ManifestSource
from featurize.sources.opening import open_source
from featurize.sources.source import SourceOptions

OLD = 1_700_000_000
IMAGES = {"a.jpg": b"image a", "sub/b.jpg": b"image b", "sub/ü c.png": b"image c"}


@pytest.fixture
def home(tmp_path):
    """A folder with images below it, and a file beside it that nobody may read."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    home = tmp_path / "home"
    for name, data in IMAGES.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(data)
        os.utime(home / name, (OLD, OLD))
    return home


def write(home, text, name="list.csv", encoding="utf-8"):
    path = home / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def write_rows(home, suffix, rows):
    """The same rows in each format."""
    titles = list(dict.fromkeys(title for row in rows for title in row))
    path = home / f"list{suffix}"
    if suffix == ".parquet":
        columns = {title: [row.get(title) for row in rows] for title in titles}
        pq.write_table(pa.table(columns), path)
    elif suffix == ".jsonl":
        write(home, "\n".join(map(json.dumps, rows)), path.name)
    else:
        mark = {".csv": ",", ".tsv": "\t", ".semicolons.csv": ";"}[suffix]
        lines = [titles, *([str(row.get(title) or "") for title in titles] for row in rows)]
        write(home, "\ufeff" + "\r\n".join(map(mark.join, lines)), path.name)
    return path


def list_images(path, **options):
    source = open_source(str(path), SourceOptions(**options))
    assert isinstance(source, ManifestSource)
    return source.list_images()


def read_all(listing):
    found = dict(read_images(listing, range(len(listing.paths))))
    assert sorted(found) == list(range(len(listing.paths)))
    images = (found[row] for row in range(len(listing.paths)))
    return [each.data if isinstance(each, ImageFile) else each.reason for each in images]


SUFFIXES = [".csv", ".tsv", ".semicolons.csv", ".jsonl", ".parquet"]


# --- what is listed is what is read --------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_format_says_the_same(suffix, home):
    labels = ["cat", "", "dog"]
    rows = [
        {"label": label, "path": name, "group": "g1", "split": "train"}
        for name, label in zip(IMAGES, labels, strict=True)
    ]
    listing = list_images(write_rows(home, suffix, rows))
    assert listing.paths == list(IMAGES)
    assert read_all(listing) == list(IMAGES.values())
    assert listing.columns == {"label": labels, "group": ["g1"] * 3, "split": ["train"] * 3}
    assert listing.sizes.tolist() == [7, 7, 7]
    assert listing.stamps.tolist() == [OLD * 10**9] * 3
    assert listing.skipped == []
    assert listing.root == str(home / f"list{suffix}")
    assert (listing.source.is_remote, listing.places) == (False, None)
    again = pickle.loads(pickle.dumps(listing.source))  # noqa: S301
    assert again.list_images().paths == listing.paths


@pytest.mark.parametrize("title", ["path", "url", "file_name", "image", "image_path", "picture"])
def test_the_column_of_images_has_one_of_the_usual_names(title, home):
    listing = list_images(write(home, f"other.jpg,{title}\nx,a.jpg".replace("other.jpg", "other")))
    assert listing.paths == ["a.jpg"]
    assert listing.columns == {"other": ["x"]}


def test_any_other_column_is_named_by_the_user(home):
    path = write(home, "where,label\na.jpg,cat\n")
    with pytest.raises(
        CallError, match=r"no column `path` or `url`, only 'where', 'label'; .*--co"
    ):
        list_images(path)
    with pytest.raises(CallError, match=r"no column 'wher', only .* \(did you mean 'where'\?\)"):
        list_images(path, column="wher")
    assert list_images(path, column="where").paths == ["a.jpg"]
    assert list_images(write(home, "where\na.jpg\n")).paths == ["a.jpg"]
    with pytest.raises(CallError, match="no column `path`"):
        list_images(write(home, "where\ncat\n"))


def test_the_same_words_mean_the_same_to_label_tables():
    from classify.labels.table_rows import PATH_TITLES as OF_LABELS
    from featurize.sources.manifest_rows import PATH_TITLES

    assert [title for title in PATH_TITLES if title in OF_LABELS] == list(OF_LABELS)


def test_keys_are_ids_or_paths_below_the_lists_folder(home):
    (home / "lists").mkdir()
    path = write(home / "lists", "id,path\n7,../a.jpg\n")
    with pytest.raises(CallError, match="leads out of the source"):
        list_images(path)
    listing = list_images(write(home, "id,path,label\nz/1,a.jpg,cat\ny,./a.jpg,dog\n"))
    assert listing.paths == ["y", "z/1"]
    assert read_all(listing) == [b"image a"] * 2
    assert listing.columns == {"label": ["dog", "cat"]}
    found = listing.source.locate(["z/1", "y"])
    assert read_all(found) == [b"image a"] * 2
    with pytest.raises(UnknownPathError):
        listing.source.locate(["a.jpg"])


def test_root_says_where_paths_begin(home, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    path = write(lists, f"path\na.jpg\n{home}/sub/b.jpg\nfile://{home}/sub/%C3%BC%20c.png\n")
    listing = list_images(path, root=str(home))
    assert listing.paths == list(IMAGES)
    assert read_all(listing) == list(IMAGES.values())
    assert listing.source.describe() == {"kind": "list", "root": str(home)}
    listing = list_images(path)
    assert listing.paths == ["a.jpg"]
    assert read_all(listing) == [reasons.VANISHED]
    assert listing.skipped == [
        f"passed over {row}: it lies outside of {lists}; --root {home}/sub would take it"
        for row in (f"{home}/sub/b.jpg", f"file://{home}/sub/%C3%BC%20c.png")
    ]
    with pytest.raises(CallError, match=r"--root .*none does not exist"):
        list_images(path, root=str(tmp_path / "none"))


def test_absolute_paths_below_the_lists_folder_are_keyed_relative_to_it(home):
    listing = list_images(write(home, f"path\n{home}/a.jpg\n{home}//sub/./b.jpg\n"))
    assert listing.paths == ["a.jpg", "sub/b.jpg"]
    assert read_all(listing) == [b"image a", b"image b"]


def test_a_missing_file_is_a_row_that_fails(home):
    listing = list_images(write(home, "path,label\na.jpg,x\nnone.jpg,y\nsub,z\n"))
    assert listing.paths == ["a.jpg", "none.jpg", "sub"]
    assert (listing.sizes[1], listing.stamps[1]) == (0, 0)
    assert read_all(listing) == [b"image a", reasons.VANISHED, reasons.NOT_A_FILE]
    (home / "a.jpg").unlink()
    assert read_all(listing)[0] == reasons.VANISHED


def test_splits_and_globs_select(home):
    names = list(IMAGES)
    path = write(home, "path,split\n{},train\n{},valid\n{},test\n".format(*names))
    assert list_images(path, split="val").paths == [names[1]]
    assert list_images(path, split="validation").paths == [names[1]]
    with pytest.raises(CallError, match=r"no split 'tests', only .* \(did you mean 'test'\?\)"):
        list_images(path, split="tests")
    with pytest.raises(CallError, match="a column `split`"):
        list_images(write(home, "path\na.jpg\n", "l.csv"), split="val")
    listing = list_images(path, include=("sub/*", "x/*"), exclude=("*.png",))
    assert listing.paths == ["sub/b.jpg"]
    assert listing.skipped == [f"the pattern 'x/*' matches no image in {path}"]
    with pytest.raises(CallError, match="none of the 3 images"):
        list_images(path, include=("*.gif",))


# --- what is not -----------------------------------------------------------------------------


def test_a_hostile_list_names_nothing_outside(home, tmp_path):
    (home / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (home / "up").symlink_to(tmp_path)
    (home / "in.jpg").symlink_to("a.jpg")
    rows = [
        "in.jpg",
        "../secret.jpg",
        "sub/../../secret.jpg",
        f"{home}/../secret.jpg",
        "file:///etc/passwd",
        "/etc/passwd",
        "out.jpg",
        "up/secret.jpg",
        f"pipe:touch {tmp_path}/ran",
        "simplecache::https://127.0.0.1:1/x.jpg",
        "reference://x.jpg",
        "ftp://127.0.0.1/x.jpg",
        "https://127.0.0.1:1/" + "x" * 600,
        "https://127.0.0.1:1/a/../b.jpg",
        "a" * 600,
        "",
    ]
    path = write(home, "".join(f"{json.dumps({'path': row})}\n" for row in rows), "l.jsonl")
    listing = list_images(path)
    assert listing.paths == ["in.jpg"]
    assert read_all(listing) == [b"image a"]
    said = "\n".join(listing.skipped)
    for row in ("../secret", "/etc/passwd", "out.jpg", "up/", "pipe:", "simplecache", "row 16"):
        assert row in said
    named = [line for line in listing.skipped if "more for that reason" not in line]
    more = [int(line.split()[2]) for line in listing.skipped if "more for that reason" in line]
    assert len(named) + sum(more) == len(rows) - 1
    assert len(said) < 6000
    assert not (tmp_path / "ran").exists()
    followed = list_images(path, follow=True)
    assert followed.paths == ["in.jpg", "out.jpg", "up/secret.jpg"]


def test_odd_text_costs_its_row_alone(home):
    rows = [{"path": "a.jpg"}, {"path": "b\0.jpg"}, {"path": "\ud800.jpg"}, {"path": None}]
    listing = list_images(write(home, "\n".join(map(json.dumps, rows)), "l.jsonl"))
    assert listing.paths == ["a.jpg"]
    assert len(listing.skipped) == 3


def test_of_repeated_rows_the_first_counts(home):
    text = "path,label\na.jpg,cat\n./a.jpg,cat\na.jpg,dog\nsub/b.jpg,dog\n"
    listing = list_images(write(home, text))
    assert listing.paths == ["a.jpg", "sub/b.jpg"]
    assert listing.columns == {"label": ["cat", "dog"]}
    assert listing.skipped == [
        "passed over ./a.jpg: the list has it already; its first row counts",
        "passed over a.jpg: the list has it already, with another label; its first row counts",
    ]


def test_a_million_sentences_are_a_few(home):
    text = "path\na.jpg\n" + "".join(f"x{k}://h/{k}.jpg\n/abs/{k}.jpg\n" for k in range(2000))
    listing = list_images(write(home, text))
    assert len(listing.skipped) == 8
    assert "passed over 1,997 more for that reason" in listing.skipped


def test_columns_that_are_no_labels_are_left_out(home):
    rows = [
        {"path": "a.jpg", "label": 3, "ok": True, "box": [1], "text": "t" * 300, "x": 0.5},
        {"path": "sub/b.jpg", "label": None, "more": "m", "meta": {"a": 1}, "x": float("nan")},
    ]
    listing = list_images(write(home, "\n".join(map(json.dumps, rows)), "l.jsonl"))
    assert listing.columns == {
        "label": ["3", ""],
        "ok": ["true", ""],
        "x": ["0.5", ""],
        "more": ["", "m"],
    }
    said = "\n".join(listing.skipped)
    assert "column box: lists and objects" in said
    assert "column meta: lists and objects" in said
    assert "column text: it has text of more than 200 characters" in said


def test_there_are_at_most_32_columns(home):
    titles = [*(f"c{k}" for k in range(200)), "path", "label"]
    cells = [*("x" for _ in range(200)), "a.jpg", "cat"]
    listing = list_images(write(home, f"{','.join(titles)}\n{','.join(cells)}\n"))
    assert len(listing.columns) == 32
    assert listing.columns["label"] == ["cat"]
    assert listing.columns["c30"] == ["x"]
    assert any("at most 32 columns" in line for line in listing.skipped)
    assert len(listing.skipped) <= 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no rows"),
        ("path,label\n", "has no rows"),
        ("a.jpg,cat\nb.jpg,dog\n", r"line 1: 'a.jpg' is no name of a column; begin the list"),
        ("path,path\na,b\n", "line 1: column 'path' is there twice"),
        ("path,label\na.jpg,cat\nb.jpg\n", "line 3: 1 fields where the header has 2"),
        ('path\n"a.jpg\n', "line 2: unexpected end of data"),
        ("path\n" + "x" * (1 << 21), "line 2: the line has more than 1,048,576 characters"),
        ("path\nä.jpg\n".encode("latin1"), "is not UTF-8 .near line .*iconv -f latin1 -t utf-8"),
        ("path\nä.jpg\n".encode("utf-16"), "is not UTF-8 .*iconv -f utf-16 -t utf-8"),
        ("path\nab.jpg\n".encode("utf-16le"), "is not UTF-8 .*iconv -f utf-16le -t utf-8"),
    ],
)
def test_a_broken_list_is_refused_by_line(text, problem, home):
    with pytest.raises(CallError, match=problem):
        list_images(write(home, text))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[1]", "line 2: a line is a JSON object"),
        ("{", "line 2: it is no JSON"),
        ("[" * 100_000, "line 2: it is no JSON"),
        ('{"path": ' + "9" * 10_000 + "}", "line 2: it is no JSON"),
    ],
)
def test_a_broken_line_of_json_is_named(line, problem, home):
    with pytest.raises(CallError, match=problem):
        list_images(write(home, f'{{"path": "a.jpg"}}\n{line}\n', "l.jsonl"))


def test_a_damaged_parquet_list_is_refused(home):
    path = write_rows(home, ".parquet", [{"path": name} for name in IMAGES])
    source = open_source(str(path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CallError, match=r"list\.parquet cannot be read: Parquet magic bytes"):
        source.list_images()


def test_lists_have_limits(home, monkeypatch):
    monkeypatch.setattr("featurize.sources.manifest_rows.MAX_ROWS", 2)
    with pytest.raises(CallError, match="more than 2 rows"):
        list_images(write(home, "path\na.jpg\nb.jpg\nc.jpg\n"))
    monkeypatch.setattr("featurize.sources.manifest_rows.MAX_LIST_BYTES", 8)
    with pytest.raises(CallError, match="larger than 0 GB"):
        list_images(write(home, "path\na.jpg\n"))


# --- URLs ----------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Knows what it was asked for."""

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.requests: list[str] = []
        self.listed = b""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server(home):
    """A web server over the folder; its requests are noted."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found.requests.append(self.path)
            name = self.path.partition("?")[0].lstrip("/")
            body = {"list.csv": found.listed, "a%20b.jpg": b"spaced"}.get(name)
            body = IMAGES.get(name) if body is None else body
            whole, code = body, 404 if body is None else 200
            if body is not None and (span := self.headers.get("Range")):
                first, _, last = span.removeprefix("bytes=").partition("-")
                body, code = body[int(first) : int(last or len(body)) + 1], 206
            self.send_response(code)
            self.send_header("Content-Length", str(len(body or b"")))
            if code == 206:
                stop = int(first) + len(body)
                self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(whole)}")
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *arguments):
            pass

    found = Server(Handler)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


def test_urls_and_paths_may_be_mixed_and_secrets_are_not_shown(home, server):
    signed = server.url.replace("//", "//user:hunter2@") + "/sub/b.jpg?X-Amz-Signature=hunter2&v=1"
    gone = f"{server.url}/none.jpg"
    listing = list_images(write(home, f"url,label\n{signed},cat\na.jpg,dog\n{gone},cat\n"))
    assert server.requests == []  # nothing is asked while listing
    shown = f"{server.url}/sub/b.jpg?v=1"
    # No part of a key is empty: C5 of the format.
    key, key_of_gone = (url.replace("http://", "http:/") for url in (shown, gone))
    assert listing.paths == sorted([key, "a.jpg", key_of_gone])
    assert dict(zip(listing.paths, read_all(listing), strict=True)) == {
        key: b"image b",
        "a.jpg": b"image a",
        key_of_gone: reasons.VANISHED,
    }
    assert listing.source.is_remote
    row = listing.paths.index(key)
    assert listing.sizes[row] == -1
    assert listing.stamps[row] == make_stamp(shown)
    assert "hunter2" not in repr(listing) + str(listing.source.describe()) + listing.root
    assert "hunter2" in listing.addresses[row]


def test_a_version_column_is_the_stamp(home, server):
    text = "path,etag,label\n{0}/a.jpg,{1},x\n{0}/b.jpg,,y\n"
    first = list_images(write(home, text.format(server.url, "v1")))
    second = list_images(write(home, text.format(server.url, "v2")))
    assert first.stamps[0] == make_stamp("v1")
    assert first.stamps[0] != second.stamps[0]
    assert first.stamps[1] == second.stamps[1] != 0
    assert list(first.columns) == ["label"]


def test_a_list_behind_a_url_names_files_beside_it_and_none_of_this_machine(home, server):
    rows = ["a.jpg", "a b.jpg", f"{home}/a.jpg", f"file://{home}/a.jpg", "%2e%2e/x.jpg", "../x.jpg"]
    server.listed = "\n".join(["path", *rows]).encode()
    source = open_source(f"{server.url}/list.csv")
    listing = source.list_images()
    assert listing.paths == ["a b.jpg", "a.jpg"]
    assert source.is_remote
    assert read_all(listing) == [b"spaced", b"image a"]
    assert sum("names no files of this machine" in line for line in listing.skipped) == 2


def test_root_may_be_a_url(home, server):
    listing = list_images(write(home, "path\nsub/b.jpg\n"), root=f"{server.url}/?token=hunter2")
    assert listing.paths == ["sub/b.jpg"]
    assert read_all(listing) == [b"image b"]
    assert "hunter2" not in str(listing.source.describe()) + repr(listing)


def test_importing_the_source_imports_no_library_of_others():
    code = (
        "import sys, featurize.sources.manifest\n"
        "assert not {'pyarrow', 'fsspec', 'aiohttp', 'pandas', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
