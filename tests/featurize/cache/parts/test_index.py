"""The index of a cache of parts: the clauses of docs/cache-format.md, and hostile content."""

import json
import os
import subprocess
import sys

import pytest

from featurize import FeatureCache
from featurize.cache.lock import WriteLock
from featurize.cache.parts.index import (
    MAX_INDEX_BYTES,
    PartRange,
    PartsIndex,
    index_lock,
    read_index,
    write_index,
)
from featurize.errors import CacheBusyError, CacheFormatError

PARTS = (
    PartRange("part-00002.h5", ""),
    PartRange("part-00000.h5", "a"),
    PartRange("part-00001.h5", "é"),
)


@pytest.fixture
def written(tmp_path):
    write_index(tmp_path, PartsIndex(PARTS, 100, {"layer4": "f" * 64}))
    return tmp_path / "parts.json"


def test_p2_an_index_is_read_as_it_was_written(written):
    assert read_index(written.parent) == PartsIndex(PARTS, 100, {"layer4": "f" * 64})
    assert json.loads(written.read_text()) == {
        "format": "headgraft-parts",
        "format_version": "1.0",
        "part_rows": 100,
        "fingerprints": {"layer4": "f" * 64},
        "include": [],
        "exclude": [],
        "parts": [{"file": part.file, "first": part.first} for part in PARTS],
    }


@pytest.mark.parametrize(
    ("key", "number"), [("", 0), ("Z", 0), ("a", 1), ("a/1", 1), ("z", 1), ("é", 2), ("中", 2)]
)
def test_p3_a_key_is_in_the_range_that_covers_it(key, number):
    assert PartsIndex(PARTS).find_part(key) == number


def test_p2_a_new_part_has_a_number_of_its_own():
    assert PartsIndex(PARTS).new_file_name() == "part-00003.h5"


def test_p2_fields_that_are_not_known_and_a_later_minor_version_are_read(written):
    content = json.loads(written.read_text()) | {"format_version": "1.7", "colour": "blue"}
    content["parts"][0]["rows"] = 3
    written.write_text(json.dumps(content))
    assert read_index(written.parent).parts == PARTS


def change(**fields):
    return lambda content: content | fields


def change_part(**fields):
    return lambda content: content | {"parts": [content["parts"][0], content["parts"][1] | fields]}


def drop(name):
    return lambda content: {key: value for key, value in content.items() if key != name}


HOSTILE = {
    "other format": change(format="other"),
    "later format": change(format_version="2.0"),
    "version is a number": change(format_version=1),
    "no version": drop("format_version"),
    "no parts": drop("parts"),
    "parts empty": change(parts=[]),
    "parts a text": change(parts="part-00000.h5"),
    "parts an object": change(parts={"file": "part-00000.h5", "first": ""}),
    "parts of numbers": change(parts=[1, 2]),
    "first part begins late": change(parts=[{"file": "part-00000.h5", "first": "a"}]),
    "out of the folder": change_part(file="../part-00001.h5"),
    "absolute": change_part(file="/etc/part-00001.h5"),
    "other name": change_part(file="x.h5"),
    "other digits": change_part(file="part-٠٠٠٠١.h5"),
    "line break": change_part(file="part-00001.h5\n"),
    "file is a number": change_part(file=7),
    "file is a list": change_part(file=["part-00001.h5"]),
    "first is a number": change_part(first=7),
    "first is null": change_part(first=None),
    "first out of order": change_part(first=""),
    "first is no text": change_part(first="\ud800"),
    "zero byte": change_part(first="a\0"),
    "file twice": change_part(file="part-00002.h5"),
    "no part_rows": drop("part_rows"),
    "part_rows zero": change(part_rows=0),
    "part_rows a text": change(part_rows="9"),
    "part_rows true": change(part_rows=True),
    "fingerprints a list": change(fingerprints=["x"]),
    "fingerprints of numbers": change(fingerprints={"layer4": 4}),
    "a list": lambda content: [content],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_p6_hostile_content_is_one_sentence(written, name):
    written.write_text(json.dumps(HOSTILE[name](json.loads(written.read_text()))))
    with pytest.raises(CacheFormatError, match=r"parts\.json is damaged: "):
        read_index(written.parent)
    with pytest.raises(CacheFormatError, match=r"parts\.json is damaged: "):
        FeatureCache(written.parent)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"null", b"[" * 100_000, b'{"part_rows": ' + b"9" * 10_000 + b"}"],
    ids=["empty", "cut", "no text", "null", "deep", "long number"],
)
def test_p6_what_is_no_json_is_one_sentence(written, content):
    written.write_bytes(content)
    with pytest.raises(CacheFormatError, match=r"parts\.json is damaged: "):
        read_index(written.parent)


def test_p6_an_index_without_end_is_not_read(written):
    os.truncate(written, MAX_INDEX_BYTES + 1)
    with pytest.raises(CacheFormatError, match=r"more than 268,435,456 bytes"):
        read_index(written.parent)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_p6_a_pipe_is_not_waited_for(written):
    written.unlink()
    os.mkfifo(written)
    code = "import signal, sys, featurize; signal.alarm(20); featurize.FeatureCache(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, written.parent], capture_output=True)
    assert b"CacheFormatError" in done.stderr, done.returncode


def test_p9_one_process_at_a_time_changes_the_index(written):
    with index_lock(written.parent) as lock:
        assert lock.path.name == "parts.json.lock"
        with pytest.raises(CacheBusyError), WriteLock(written):
            pass
    with WriteLock(written) as other:
        other.require_held()


def test_p1_a_folder_without_an_index_is_no_cache(tmp_path):
    with pytest.raises(CacheFormatError, match=r"is not a feature cache: it is a folder without"):
        FeatureCache(tmp_path)
