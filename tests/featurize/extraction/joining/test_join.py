"""`join`: one file of a cache of parts, equal to the file of an ordinary run, whatever happens."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest

import featurize
from featurize import FeatureCache
from featurize.cache import writer
from featurize.cache.builder import allocate_cache
from featurize.cache.format import FAILED, MARKED
from featurize.cache.layout import read_layout
from featurize.cache.lock import WriteLock
from featurize.cache.parts.index import PartRange, PartsIndex, read_index, write_index
from featurize.cache.writer import CacheWriter
from featurize.errors import (
    CacheBusyError,
    CacheFormatError,
    CallError,
    DiskFullError,
    OutputError,
)
from featurize.sources.listing import Container, ImagePlaces

NAMES = [f"{k // 4}/{k:02}.png" for k in range(16)]
FIRSTS = ("", "1/05.png", "2/")


def cut(whole, folder, firsts=FIRSTS):
    """A cache of parts with the rows of a cache: what runs on the parts would have made."""
    cache = FeatureCache(whole)
    folder.mkdir()
    parts = [PartRange(f"part-{k:05d}.h5", first) for k, first in enumerate(firsts)]
    fingerprints = {name: info.fingerprint for name, info in cache.layers.items()}
    write_index(folder, PartsIndex(tuple(parts), 6, fingerprints))
    index = read_index(folder)
    part_of = np.array([index.find_part(key) for key in cache.paths])
    for number, part in enumerate(index.parts):
        cut_rows(cache, np.flatnonzero(part_of == number), folder / part.file)
    return folder


def cut_rows(cache, rows, path):
    column = {name: cache.column(name)[rows] for name in ("size", "mtime_ns", "status", "reason")}
    digests = cache.column("sha256")[rows]
    places = None
    if cache.containers:
        container_of = cache.column("container")[rows]
        used = sorted(set(container_of.tolist()))
        listed = [Container(c.name, c.size, c.stamp) for c in (cache.containers[k] for k in used)]
        offsets = cache.column("offset")[rows]
        places = ImagePlaces(listed, np.searchsorted(used, container_of).astype("i4"), offsets)
    keys = [cache.paths[row] for row in rows]
    allocate_cache(
        path,
        cache.extractor,
        list(cache.layers.values()),
        keys,
        *(column["size"], column["mtime_ns"]),
        root=cache.root,
        source=cache.source or None,
        places=places,
    )
    with CacheWriter(path) as into:
        ok, bad = (np.flatnonzero(column["status"] == status) for status in (MARKED, FAILED))
        into.fill(
            ok,
            {name: cache.stored(name, rows[ok]) for name in cache.layers},
            *(digests[ok], column["size"][ok], column["mtime_ns"][ok]),
            {name: cache.checksums(name, rows[ok]) for name in cache.layers},
        )
        stat = column["size"][bad], column["mtime_ns"][bad]
        into.record_failures(bad, column["reason"][bad], digests[bad], *stat)
    for end in ("labels.csv", "labels.source"):
        table = cache.path.with_name(f"{cache.path.name}.{end}")
        if table.exists():
            lines = table.read_text().splitlines(keepends=True)
            kept = [line for line in lines[1:] if line.split(",")[0] in set(keys)]
            path.with_name(f"{path.name}.{end}").write_text("".join([lines[0], *kept]))


def content(path):
    """All that is in a cache, but its name and when it was made."""
    cache = FeatureCache(path)
    everything = {name: cache.column(name).tolist() for name in ("path", "size", "mtime_ns")}
    everything |= {name: cache.column(name).tolist() for name in ("status", "reason")}
    everything["sha256"] = cache.column("sha256").tolist()
    rows = np.flatnonzero(cache.status == MARKED)
    for name in cache.layers:
        everything[name] = cache.stored(name, rows).tobytes()
        everything[f"{name} checksums"] = cache.checksums(name, rows).tobytes()
    told = (cache.layers, cache.extractor, cache.containers, cache.source, cache.root)
    return everything, told, cache.format_version


def write_shards(folder, photos, names):
    """Two tars with a label beside each image."""
    folder.mkdir()
    for shard, members in enumerate((names[:7], names[7:])):
        path = folder / f"s-{shard}.tar"
        with tarfile.open(path, "w") as archive:
            for name in sorted(members):
                for member, data in (
                    (name.replace("/", "-"), (photos / name).read_bytes()),
                    (name.replace("/", "-").replace("png", "cls"), f"is {name[0]}".encode()),
                ):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        then = time.time_ns() - 10**10
        os.utime(path, ns=(then, then))
    return folder


@pytest.fixture
def photos(draw, tmp_path):
    folder = draw(tmp_path / "photos", NAMES)
    (folder / "1" / "bad.png").write_bytes(b"no image")
    os.utime(folder / "1" / "bad.png", (1e9, 1e9))
    return folder


@pytest.fixture
def whole(photos, toy, tmp_path):
    path = tmp_path / "whole.h5"
    assert featurize.run(photos, path, backbone=toy, layers="0:max,2").failed == 1
    return path


@pytest.fixture
def parts(whole, tmp_path):
    return cut(whole, tmp_path / "parts")


def files(folder):
    return {path.name for path in folder.glob("c.h5*")} - {"c.h5.lock"}


def test_the_file_is_that_of_one_run(whole, photos, parts, toy, tmp_path):
    steps = []
    done = featurize.join(parts, tmp_path / "c.h5", report=steps.append)
    assert done.to_dict() == {"cache": str(tmp_path / "c.h5"), "rows": 17}
    assert content(tmp_path / "c.h5") == content(whole)
    assert FeatureCache(tmp_path / "c.h5").verify() == []
    assert (steps[-1].done, steps[-1].total) == (17, 17)
    assert files(tmp_path) == {"c.h5"}
    again = featurize.run(photos, tmp_path / "c.h5", backbone=toy)
    assert (again.computed, again.reused, again.failed) == (0, 16, 1)


def test_pending_rows_stay_pending(allocate, fill, tmp_path):
    names = [f"{k}.png" for k in range(6)]
    whole = allocate(tmp_path / "w.h5", paths=names)
    with CacheWriter(whole) as into:
        fill(into, [0, 3])
    said = []
    featurize.join(cut(whole, tmp_path / "d", ("", "3")), tmp_path / "c.h5", say=said.append)
    assert FeatureCache(tmp_path / "c.h5").status.tolist() == [1, 0, 0, 1, 0, 0]
    assert content(tmp_path / "c.h5") == content(whole)
    assert said[-1] == "4 rows of them pending; `featurize run` completes them"


@pytest.mark.parametrize("firsts", [("", "s-1.tar/"), ("", "s-0.tar/0-03.png", "s-1.tar/2")])
def test_shards_that_parts_share_become_one(photos, toy, tmp_path, firsts, opened):
    shards = write_shards(tmp_path / "shards", photos, NAMES)
    featurize.run(shards, tmp_path / "whole.h5", backbone=toy, layers="2")
    parts = cut(tmp_path / "whole.h5", tmp_path / "d", firsts)
    featurize.join(parts, tmp_path / "c.h5")
    assert content(tmp_path / "c.h5") == content(tmp_path / "whole.h5")
    for end in ("labels.csv", "labels.source"):
        table = (tmp_path / f"c.h5.{end}").read_text()
        assert table == (tmp_path / f"whole.h5.{end}").read_text()
    with opened(shards) as names:
        assert featurize.run(shards, tmp_path / "c.h5", backbone=toy).computed == 0
    assert not any(names)  # what the cache knows of the shards is enough


@pytest.mark.long
def test_a_shard_that_parts_saw_at_different_times_is_opened_again(photos, toy, tmp_path):
    shards = write_shards(tmp_path / "shards", photos, NAMES)
    featurize.run(shards, tmp_path / "whole.h5", backbone=toy, layers="2")
    parts = cut(tmp_path / "whole.h5", tmp_path / "d", ("", "s-1.tar/2"))
    index = read_index(parts)
    cache = FeatureCache(parts / index.parts[1].file)
    record, column = cache.containers[0], cache.column
    later = ImagePlaces(
        [Container(record.name, record.size, record.stamp + 1)],
        column("container"),
        column("offset"),
    )
    with CacheWriter(cache.path) as into:
        into.write_places(later, column("mtime_ns"))
    featurize.join(parts, tmp_path / "c.h5")
    assert [c.stamp == 0 for c in FeatureCache(tmp_path / "c.h5").containers] == [False, True]
    assert featurize.run(shards, tmp_path / "c.h5", backbone=toy).computed == 0


def test_corrected_labels_stay(photos, toy, tmp_path):
    shards = write_shards(tmp_path / "shards", photos, NAMES)
    featurize.run(shards, tmp_path / "whole.h5", backbone=toy, layers="2")
    parts = cut(tmp_path / "whole.h5", tmp_path / "d", ("", "s-1.tar/2"))
    of_part = parts / "part-00000.h5.labels.csv"
    key = "s-0.tar/0-00.png"
    of_part.write_text(of_part.read_text().replace(f"{key},is 0", f"{key},mine"))
    table = tmp_path / "c.h5.labels.csv"
    featurize.join(parts, tmp_path / "c.h5")
    assert f"{key},mine" in table.read_text()
    # Corrected in the joined table: stays through a further join, with a column that was added.
    rows = list(csv.reader(io.StringIO(table.read_text())))
    rows[2][1] = "also mine"
    rows = [[*row, "group" if k == 0 else f"g{k}"] for k, row in enumerate(rows)]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    said = []
    featurize.join(parts, tmp_path / "c.h5", say=said.append)
    assert list(csv.reader(io.StringIO(table.read_text()))) == rows
    assert any("that were corrected stay" in sentence for sentence in said)
    # The part says something else now: that counts, and the table as it was is kept.
    of_part.write_text(of_part.read_text().replace(rows[2][0] + ",is 0", rows[2][0] + ",theirs"))
    featurize.join(parts, tmp_path / "c.h5", say=said.append)
    assert list(csv.reader(io.StringIO(table.read_text())))[2][1] == "theirs"
    assert "also mine" in (tmp_path / "c.h5.labels.csv.old").read_text()
    assert "labels.csv.old is the table as it was" in said[-1]


def test_the_globs_are_those_of_the_index(parts, tmp_path):
    """Parts that had nothing to do keep the globs with which they were made."""
    index = read_index(parts)
    write_index(parts, replace(index, include=("*.png",), exclude=("x/*",)))
    featurize.join(parts, tmp_path / "c.h5")
    joined = FeatureCache(tmp_path / "c.h5")
    assert (joined.include, joined.exclude) == (["*.png"], ["x/*"])


# What is refused


def refuse(error, match, parts, output):
    before = {path: path.read_bytes() for path in parts.glob("part-*.h5")}
    with pytest.raises(error, match=match):
        featurize.join(parts, output)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_missing_part_is_named(parts, tmp_path, command):
    (parts / "part-00001.h5").unlink()
    refuse(FileNotFoundError, r"part-00001\.h5 is missing", parts, tmp_path / "c.h5")
    assert not list(tmp_path.glob("c.h5*"))
    done = command("featurize", "join", parts, "-o", tmp_path / "c.h5", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "part-00001.h5" in done.stderr
    assert not list(tmp_path.glob("c.h5*"))


def test_what_is_no_cache_of_parts(parts, tmp_path, command):
    refuse(CacheFormatError, "a folder without parts.json", tmp_path, tmp_path / "c.h5")
    (parts / "parts.json").write_text("{")
    refuse(CacheFormatError, "parts.json is damaged", parts, tmp_path / "c.h5")
    done = command("featurize", "join", tmp_path / "nowhere", "-o", tmp_path / "c.h5")
    assert (done.returncode, files(tmp_path)) == (2, set())


@pytest.mark.long
def test_an_output_that_is_no_join_is_left(parts, whole, toy, draw, tmp_path):
    path = tmp_path / "c.h5"
    path.write_text("a letter")
    refuse(CacheFormatError, "give another -o", parts, path)
    assert path.read_text() == "a letter"
    path.unlink()
    featurize.run(draw(tmp_path / "more", [*NAMES, "z.png"]), path, backbone=toy, layers="0:max,2")
    before = path.read_bytes()
    refuse(OutputError, "1 row that they do not have.*z.png.*remove it first", parts, path)
    path.unlink()
    featurize.run(draw(tmp_path / "other", NAMES, 1), path, backbone=toy, layers="2")
    refuse(OutputError, "or as another image", parts, path)
    path.unlink()
    featurize.run(tmp_path / "other", path, backbone=toy, layers="0")
    refuse(OutputError, "it has another 0", parts, path)
    assert path.read_bytes() != before
    assert files(tmp_path) == {"c.h5"}


def test_an_output_among_the_parts_is_refused(parts, tmp_path):
    for path in (parts / "part-00000.h5", parts / "c.h5"):
        refuse(CallError, "would lie among the parts", parts, path)
    (tmp_path / "link.h5").symlink_to(parts / "part-00000.h5")
    refuse(CallError, "would lie among the parts", parts, tmp_path / "link.h5")
    (tmp_path / "hard.h5").hardlink_to(parts / "part-00000.h5")
    refuse(CallError, "is one of the parts", parts, tmp_path / "hard.h5")
    refuse(CallError, "is a folder", parts, tmp_path)
    refuse(CallError, "there is no folder", parts, tmp_path / "nowhere" / "c.h5")


def test_a_part_that_is_written_to_is_not_read(parts, tmp_path):
    with WriteLock(parts / "part-00002.h5"):
        refuse(CacheBusyError, "part-00002.h5; join the parts when", parts, tmp_path / "c.h5")
    with WriteLock(tmp_path / "c.h5"):
        refuse(CacheBusyError, r"c\.h5; wait for it", parts, tmp_path / "c.h5")


@pytest.mark.long
def test_parts_that_do_not_belong_together(parts, whole, photos, toy, allocate, tmp_path):
    other = tmp_path / "other.h5"
    featurize.run(photos / "3", other, backbone=toy, layers="2")
    cache = FeatureCache(other)
    keys = [f"3/{path}" for path in cache.paths]
    allocate_cache(
        parts / "part-00002.h5",
        cache.extractor,
        list(cache.layers.values()),
        keys,
        *(cache.column("size"), cache.column("mtime_ns")),
        root="/",
    )
    refuse(CacheFormatError, "part-00002.h5 has the layers 2", parts, tmp_path / "c.h5")
    allocate(parts / "part-00002.h5", paths=keys)
    refuse(CacheFormatError, "part-00002.h5 was made otherwise than", parts, tmp_path / "c.h5")
    shutil.copy(parts / "part-00000.h5", parts / "part-00001.h5")
    refuse(CacheFormatError, "0/00.png', which is not in the range", parts, tmp_path / "c.h5")


def test_a_full_disk_is_told_before(parts, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refuse(DiskFullError, "c.h5.joining needs", parts, tmp_path / "c.h5")
    assert files(tmp_path) == set()


# Joined again


@pytest.mark.long
def test_a_join_of_what_is_joined_copies_nothing(parts, tmp_path):
    path, said = tmp_path / "c.h5", []
    featurize.join(parts, path)
    before = path.stat()
    assert featurize.join(parts, path, say=said.append).rows == 17
    assert said == [f"{path} has all rows of the parts already, as they are"]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.long
def test_parts_that_grew_are_joined_again(photos, draw, toy, parts, whole, tmp_path):
    path = tmp_path / "c.h5"
    featurize.join(parts, path)
    draw(photos, ["1/99.png", "9/00.png"], seed=3)
    featurize.run(photos, whole, backbone=toy)
    shutil.rmtree(parts)
    cut(whole, parts)
    assert featurize.join(parts, path).rows == 19
    assert content(path) == content(whole)
    assert files(tmp_path) == {"c.h5"}


@pytest.mark.long
def test_damage_is_copied_as_damage(parts, tmp_path):
    """A row whose numbers changed in the part does not look sound in the file."""
    path = parts / "part-00001.h5"
    extent = read_layout(path).extents["features/2"]
    with path.open("r+b") as file:
        file.seek(extent.offset)
        file.write(np.float32(3).tobytes())
    featurize.join(parts, tmp_path / "c.h5")
    (problem,) = FeatureCache(tmp_path / "c.h5").verify()
    assert "the numbers of row 5 are not those" in problem


# Killed


@pytest.mark.parametrize("has_former", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_kill_after_any_write(parts, whole, tape, tmp_path, monkeypatch, has_former):
    home = tmp_path / "home"
    home.mkdir()
    if has_former:
        featurize.join(cut(whole, tmp_path / "old"), home / "c.h5")
        cache = FeatureCache(parts / "part-00000.h5")
        with CacheWriter(cache.path) as into:  # so that there is something to join again
            into.update_stat(np.arange(2), cache.column("size")[:2], np.full(2, 77))
    truth = tmp_path / "truth.h5"
    featurize.join(parts, truth)
    with monkeypatch.context() as often:
        often.setattr(writer, "SYNC_INTERVAL_SECONDS", 0)
        often.setattr("featurize.extraction.joining.copying.COPY_CHUNK_BYTES", 160)
        recorder = tape(home)
        featurize.join(parts, home / "c.h5")
    events, disk = list(recorder.events), recorder.before
    monkeypatch.undo()
    former = disk.now().get("c.h5")
    seen, n_resumed, said = set(), 0, []
    for k, event in enumerate(events):
        disk.apply(event)
        state = disk.now()
        if event.kind != "rename" or event.new_name != "c.h5":
            is_replaced = "c.h5" in state and state["c.h5"] != former
            assert not is_replaced or content_of(state, tmp_path) == content(truth)
        if k % 41 and event.kind != "rename":
            continue
        folder = tmp_path / f"state-{k}"
        folder.mkdir()
        for name, data in state.items():
            (folder / name).write_bytes(data)
        featurize.join(parts, folder / "c.h5", say=said.append)
        assert content(folder / "c.h5") == content(truth)
        assert files(folder) == {"c.h5"}
        seen.add(frozenset(state))
        n_resumed += any("going on" in sentence for sentence in said)
        said.clear()
    assert len(seen) >= 2
    assert n_resumed > 1


def content_of(state, folder):
    (folder / "now.h5").write_bytes(state["c.h5"])
    return content(folder / "now.h5")


@pytest.mark.slow
def test_real_kills_and_a_stop(allocate, fill, tmp_path):
    """A process killed at random instants; then one that is stopped; then it goes on."""
    names = [f"{k // 1000:03}/{k:06}.png" for k in range(40_000)]
    whole = allocate(tmp_path / "w.h5", (("layer4", 2048),), names)
    with CacheWriter(whole) as into:
        for start in range(0, len(names), 4000):
            fill(into, np.arange(start, start + 4000))
    parts, path = cut(whole, tmp_path / "d", ("", "010/", "020/")), tmp_path / "c.h5"
    launcher = os.path.join(os.path.dirname(sys.executable), "featurize")
    line = [launcher, "join", str(parts), "-o", str(path), "--json"]
    rng, n_killed = np.random.default_rng(0), 0
    for number in [signal.SIGKILL] * 10 + [signal.SIGTERM] * 2:
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as join:
            for text in join.stderr:
                if b"beside the parts" in text or b"going on with" in text:
                    break  # copying begins
            time.sleep(rng.uniform(0, 0.2))
            join.send_signal(number)
            _, said = join.communicate()
        if join.returncode == 0:
            path.unlink()
            continue
        n_killed += 1
        assert not path.exists()
        if number == signal.SIGTERM:
            assert join.returncode == 3
            assert b"The same command goes on" in said
        if (tmp_path / "c.h5.joining").exists():
            assert FeatureCache(tmp_path / "c.h5.joining").verify() == []
    assert n_killed > 5
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"cache": str(path), "rows": 40_000}
    assert content(path) == content(whole)
