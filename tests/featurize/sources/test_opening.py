"""What a path or URL is taken for, and what is said where it is nothing that is read."""

import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurize.errors import CallError
from featurize.sources import opening
from featurize.sources.listing import read_images
from featurize.sources.opening import describe_source, open_source
from featurize.sources.recognition import local_paths
from featurize.sources.source import DEFAULT_OPTIONS, SourceOptions


def make_tar(images: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_zip(images: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in images.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def make_table(images: dict[str, bytes], form: str = "parquet") -> bytes:
    rows = [{"bytes": data, "path": name} for name, data in images.items()]
    table, buffer = pa.table({"image": rows}), io.BytesIO()
    if form == "parquet":
        pq.write_table(table, buffer)
    else:
        with pa.ipc.new_stream(buffer, table.schema) as stream:
            stream.write_table(table)
    return buffer.getvalue()


IMAGES = {"a.jpg": b"one", "b.jpg": b"two"}
FOLDERS: dict[str, tuple[dict[str, bytes], str]] = {
    "images": ({"x/a.jpg": b"one", "y/b.jpg": b"two"}, "folder"),
    "shards": ({"s-0.tar": make_tar(IMAGES), "s-0.idx": b"", "s-1.tar": make_tar({})}, "tar"),
    "zips": ({"s/one.zip": make_zip(IMAGES)}, "zip"),
    "hub": (
        {
            "README.md": b"#",
            "logo.png": b"logo",
            "data/train-00000-of-00001.parquet": make_table(IMAGES),
        },
        "table",
    ),
    "on_disk": (
        {
            "dataset_dict.json": b"{}",
            "train/state.json": b"{}",
            "train/data-00000-of-00001.arrow": make_table(IMAGES, "arrow"),
            "train/cache-0123.arrow": b"left behind",
        },
        "table",
    ),
}


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read_all(source) -> list[bytes]:
    listing = source.list_images()
    return sorted(read.image.data for read in read_images(listing, range(len(listing.paths))))


# --- folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_what_a_folder_is(name, tmp_path, in_memory):
    files, kind = FOLDERS[name]
    source = open_source(put(tmp_path, files))
    assert (source.describe()["kind"], source.is_remote) == (kind, False)
    assert read_all(source) == [b"one", b"two"]
    assert source.root == str(tmp_path)

    in_memory({f"/box/{path}": data for path, data in files.items()})
    source = open_source("memory://box")
    kind = "bucket" if kind == "folder" else kind
    assert (source.describe()["kind"], source.is_remote) == (kind, True)
    assert read_all(source) == [b"one", b"two"]
    assert source.root == "memory://box"


@pytest.mark.parametrize("remote", [False, True])
def test_what_there_is_more_of_wins_and_the_rest_is_said(remote, tmp_path, in_memory):
    many = {f"images/{k}.jpg": b"one" for k in range(3)} | {"all.zip": make_zip(IMAGES)}
    put(tmp_path, many)
    in_memory({f"/box/{path}": data for path, data in many.items()})
    where, said = ("memory://box" if remote else str(tmp_path)), []
    images = "bucket" if remote else "folder"

    assert open_source(where, say=said.append).describe()["kind"] == images
    assert said == [
        f"{where} is read as a folder of images; its .zip files are not read: "
        "`--include '*.zip'` takes those"
    ]
    chosen = open_source(where, SourceOptions(include=("*.zip",)), said.append)
    assert (read_all(chosen), len(said)) == ([b"one", b"two"], 1)
    assert open_source(where, former="zip").kind == "zip archives"
    assert open_source(where, former="table").describe()["kind"] == images
    with pytest.raises(CallError, match="is left by --include"):
        open_source(where, SourceOptions(include=("x*.zip",)))


@pytest.mark.parametrize("remote", [False, True])
def test_shards_beside_a_picture_are_read_and_it_is_said(remote, tmp_path, in_memory):
    files = {"logo.png": b"logo", "s-0.tar": make_tar({"a.jpg": b"a"}), "s-1.tar": make_tar(IMAGES)}
    put(tmp_path, files)
    in_memory({f"/box/{path}": data for path, data in files.items()})
    where, said = ("memory://box" if remote else str(tmp_path)), []
    assert open_source(where, say=said.append).kind == "tar shards"
    assert said == [
        f"{where} is read for its .tar files; images beside them are not read: "
        "`--exclude '*.tar'` takes those"
    ]
    assert read_all(open_source(where, SourceOptions(exclude=("*.tar",)))) == [b"logo"]
    # One of the shards, and of the images in it some.
    options = SourceOptions(include=("s-1.tar", "b.jpg"))
    assert read_all(open_source(where, options)) == [b"two"]
    options = SourceOptions(exclude=("s-0.tar", "b.jpg"))
    assert read_all(open_source(where, options)) == [b"one"]


def test_containers_of_several_kinds_are_to_be_chosen_from(tmp_path):
    put(tmp_path, {"a.tar": make_tar(IMAGES), "b.zip": make_zip(IMAGES)})
    with pytest.raises(CallError, match=r"holds \.tar and \.zip files; choose with --include"):
        open_source(tmp_path)
    assert open_source(tmp_path, SourceOptions(include=("*.zip",))).kind == "zip archives"
    assert open_source(tmp_path, SourceOptions(exclude=("*.zip",))).kind == "tar shards"


def test_a_folder_is_looked_at_in_part(tmp_path, monkeypatch):
    """A large folder is not walked to see what it is."""
    for k in range(100):
        (tmp_path / f"{k:02}").mkdir()
        for i in range(30):
            (tmp_path / f"{k:02}" / f"{i}.txt").touch()
    looked, scandir = [], local_paths.os.scandir

    def count(path):
        looked.append(path)
        return scandir(path)

    monkeypatch.setattr(local_paths.os, "scandir", count)
    assert open_source(tmp_path).kind == "folder"
    assert len(looked) == local_paths.MAX_LOOKED_FOLDERS


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({}, "no image in|there is nothing in"),
        ({"a.txt": b""}, "looked for .*jpg"),
        ({"train.tar.gz": b""}, "can only be reached by unpacking"),
        ({"list.csv": b"path\n"}, "a list: list.csv; give the list itself"),
    ],
)
def test_a_folder_of_nothing_that_is_read(files, match, tmp_path, in_memory):
    put(tmp_path, files)
    with pytest.raises(CallError, match=match):
        open_source(tmp_path).list_images()
    in_memory({f"/box/{path}": data for path, data in files.items()})
    with pytest.raises(CallError, match=match):
        open_source("memory://box")


# --- lists ---------------------------------------------------------------------------------


def make_list(form: str) -> bytes:
    if form == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.table({"path": list(IMAGES), "label": ["x", "y"]}), buffer)
        return buffer.getvalue()
    if form in ("jsonl", "ndjson"):
        return b"".join(b'{"path": "%s"}\n' % name.encode() for name in IMAGES)
    return "\n".join(["path", *IMAGES]).encode()


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "ndjson", "parquet"])
def test_what_a_list_is(form, tmp_path, in_memory, web):
    files = IMAGES | {f"list.{form}": make_list(form)}
    put(tmp_path, files)
    in_memory({f"/box/{path}": data for path, data in files.items()})
    web.files = {f"/{path}": data for path, data in files.items()}
    for where in (str(tmp_path), "memory://box", web.url):
        source = open_source(f"{where}/list.{form}")
        assert source.describe()["kind"] == "list"
        assert read_all(source) == [b"one", b"two"]
    for name in ("component", "scratch"):
        with pytest.raises(CallError, match=f"--{name} means nothing for a list of images"):
            open_source(f"{tmp_path}/list.{form}", replace(DEFAULT_OPTIONS, **{name: "x"}))


# --- files -----------------------------------------------------------------------------------

FILES = {
    "a.tar": (make_tar(IMAGES), "tar file"),
    "a.zip": (make_zip(IMAGES), "zip archive"),
    "a.parquet": (make_table(IMAGES), "Parquet table"),
    "a.arrow": (make_table(IMAGES, "arrow"), "Arrow table"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_is(name, tmp_path, in_memory, web):
    data, kind = FILES[name]
    put(tmp_path, {f"x/{name}": data})
    in_memory({f"/box/x/{name}": data})
    web.files[f"/x/{name}"] = data
    url = web.url.replace("://", "://me:hunter2@")
    for where, root in [
        (str(tmp_path / "x" / name), f"{tmp_path}/x/{name}"),
        ((tmp_path / "x" / name).as_uri(), f"{tmp_path}/x/{name}"),
        (f"memory://box/x/{name}", f"memory://box/x/{name}"),
        (f"{url}/x/{name}?sig=hunter2", f"{web.url}/x/{name}"),
    ]:
        source = open_source(where)
        assert (source.kind, source.root) == (kind, root)
        assert read_all(source) == [b"one", b"two"]
        assert describe_source(source) == f"{root}: {kind}"
        assert "hunter2" not in f"{source!r} {source.describe()} {source.root}"
    if name != "a.arrow":
        assert "/a.jpg" not in source.list_images().paths[0]


def test_several_files_are_one_source(tmp_path, in_memory, web, monkeypatch):
    shards = {f"s-{k:03}.tar": make_tar({f"{k}.jpg": b"%d" % k}) for k in range(12)}
    put(tmp_path, shards)
    in_memory({f"/box/{path}": data for path, data in shards.items()})
    in_memory({"/box/deep/s-000.tar": make_tar({"x.jpg": b"x"})})
    web.files = {f"/{path}": data for path, data in shards.items()}
    monkeypatch.chdir(tmp_path)
    names = sorted(shards)
    everything = [f"{name}/{k}.jpg" for k, name in enumerate(names)]
    for given, n_files in [
        ("s-{000..011}.tar", 12),
        (f"{tmp_path}/s-{{000..004}}.tar", 5),
        (f"{tmp_path}/s-00*.tar", 10),
        (f"file://{tmp_path}/*.tar", 12),
        ([tmp_path / name for name in names], 12),
        ("memory://box/s-{000..011}.tar", 12),
        ("memory://box/s-00[0-3].tar", 4),
        ("memory://box/*.tar", 12),
        ([f"memory://box/{name}" for name in names[:3]], 3),
        (f"{web.url}/s-{{000..002}}.tar?sig=hunter2", 3),
        ([f"{web.url}/{name}?sig=hunter2" for name in names[:2]], 2),
    ]:
        source = open_source(given)
        assert source.list_images().paths == everything[:n_files]
        assert describe_source(source).endswith(f": tar shards, {n_files} files")
        assert "hunter2" not in f"{source!r}{describe_source(source)}"
    assert vars(open_source("memory://box/**/*.tar"))["files"][0].name == "deep/s-000.tar"
    # A pattern is a pattern with one match too: a further shard changes no key.
    assert open_source("s-{000..000}.tar").list_images().paths == everything[:1]
    assert open_source("s-000.tar").list_images().paths == ["0.jpg"]


def test_files_of_several_folders(tmp_path):
    put(tmp_path, {f"{name}/s.zip": make_zip({"a.jpg": name.encode()}) for name in "xy"})
    source = open_source([tmp_path / "x/s.zip", tmp_path / "y/s.zip"])
    assert source.list_images().paths == ["x/s.zip/a.jpg", "y/s.zip/a.jpg"]
    assert source.root == str(tmp_path)


def test_names_with_braces_and_stars_that_exist_are_names(tmp_path):
    put(tmp_path, {"a{0..1}.tar": make_tar(IMAGES), "[b]*.zip": make_zip(IMAGES)})
    assert open_source(tmp_path / "a{0..1}.tar").kind == "tar file"
    assert open_source(tmp_path / "[b]*.zip").kind == "zip archive"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("photso", r"does not exist \(did you mean 'photos'\?\); give the folder"),
        ("photos/a.jpg", "is one image; give the folder that holds it, with --include 'a.jpg'"),
        ("photos/*.jpg", "single images; give the folder that holds them"),
        ("notes.txt", "of no kind that is read; looked for .tar"),
        ("a.tar.gz", "can only be reached by unpacking"),
        ("none-*.tar", "no file matches none-"),
        ("a-{0..9}.tar", "9 of 10 are missing or no files: 'a-1.tar', 'a-2.tar', 'a-3.tar', ..."),
        (["a-0.tar", "b.zip"], "several kinds: tar, zip"),
        (["l.csv", "m.csv"], "are 2 lists; give one"),
        (["photos", "a-0.tar"], "photos is a folder; several IMAGES are files of one kind"),
        (["a-0.tar", "s3://bucket/a.tar"], "cannot be mixed"),
        (["s3://a/x.tar", "s3://b/x.tar"], "of one host"),
        (["http://u:p@h/x.tar", "http://h/x.tar"], "of one host"),
        ([], "no images are given"),
        ("", "no images are given"),
        ("x" * 5000, "does not exist"),
        ("a\0b", "does not exist"),
        ("pipe:touch x", "URLs begin with one of"),
        ("reference://x", "URLs begin with one of"),
        ("zip::s3://bucket/x", "URLs begin with one of"),
        ("http://127.0.0.1:1/photos/", "do not list their files"),
        ("http://127.0.0.1:1/*.tar", "do not list their files"),
        ("http://127.0.0.1:1/a.jpg", "is one image"),
        ("memory://box/none.tar", "there is nothing in memory://box/none.tar"),
        ("memory://box/none/*.tar", "no file matches memory://box/none/"),
        ("memory://box/{0..2}.tar", "3 of 3 files are missing: 'memory://box/0.tar'"),
        ("memory://box/{00..99}.tar", "100 of 100 files are missing"),
        ("memory://{a,b}/x.tar", "stand in names of files alone"),
        ("gs://bucket/photos", "pip install gcsfs"),
    ],
)
def test_what_is_said_of_what_is_not_there(given, match, tmp_path, in_memory, monkeypatch):
    put(tmp_path, {"photos/a.jpg": b"1", "photos/b.jpg": b"2", "notes.txt": b"", "a.tar.gz": b""})
    put(tmp_path, {"a-0.tar": make_tar(IMAGES), "b.zip": make_zip(IMAGES)})
    put(tmp_path, {"l.csv": b"path\n", "m.csv": b"path\n"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CallError, match=match) as caught:
        open_source(given)
    assert len(str(caught.value)) < 700
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("where", "name", "value", "match"),
    [
        ("images", "column", "x", "--column means nothing for a folder of images"),
        ("images", "split", "train", "--split"),
        ("images", "component", "jpg", "--component"),
        ("images", "root", "x", "--root"),
        ("images", "scratch", "x", "--scratch"),
        ("shards", "column", "x", "--column means nothing for a tar archive"),
        ("shards", "root", "x", "--root"),
        ("shards", "scratch", "x", "--scratch means nothing for a tar archive of this machine"),
        ("zips", "split", "train", "--split means nothing for a zip archive"),
        ("hub", "component", "jpg", "--component means nothing for a table"),
        ("on_disk", "root", "x", "--root means nothing for a table"),
    ],
)
def test_options_that_mean_nothing_are_refused(where, name, value, match, tmp_path, in_memory):
    put(tmp_path, FOLDERS[where][0])
    options = replace(DEFAULT_OPTIONS, **{name: value})
    with pytest.raises(CallError, match=match):
        open_source(tmp_path, options)
    in_memory({f"/box/{path}": data for path, data in FOLDERS[where][0].items()})
    if name != "scratch":
        with pytest.raises(CallError, match=f"--{name}"):
            open_source("memory://box", options)
    with pytest.raises(CallError, match=r"--follow means nothing for .* behind a URL"):
        open_source("memory://box", SourceOptions(follow=True))


def test_a_folder_alone_imports_no_library_of_stores():
    import subprocess
    import sys

    code = (
        "import sys; from featurize.sources.opening import open_source; open_source('.')\n"
        "assert not {'fsspec', 'aiohttp', 'pyarrow', 's3fs', 'torch'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert opening.__doc__
