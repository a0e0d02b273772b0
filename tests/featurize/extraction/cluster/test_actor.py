"""What a worker looks at before it begins, and which contents it leaves to the driver."""

import hashlib
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurize.errors import CallError
from featurize.extraction.cluster.actor import (
    KnownContents,
    NetworkPlan,
    WorkerJob,
    check_machine,
)
from featurize.extraction.cluster.blocks import SourceParts
from featurize.extraction.cluster.results import KNOWN
from featurize.pipeline.content_index import ContentIndex
from featurize.sources.opening import open_source
from featurize.version import __version__


@pytest.fixture
def job(draw, tmp_path, monkeypatch):
    """A job over a folder whose path is relative, as it may be given."""
    draw(tmp_path / "images", ["1.png", "2.png"])
    monkeypatch.chdir(tmp_path)
    listing = open_source("images").list_images()
    monkeypatch.chdir("/")
    return WorkerJob(
        **{"version": __version__, "host": "driver", "folder": str(tmp_path)},
        network=NetworkPlan([], {}, "eager", "float32", ""),
        source=SourceParts.of(listing),
        known=np.zeros(0, np.uint64),
        **{"returns_changed": False, "computes_unchanged": False},
        **{"device": "cpu", "n_cores": 1, "n_rows": 2},
    )


def test_relative_paths_are_those_of_the_driver(job):
    check_machine(job)
    assert Path.cwd() == Path(job.folder)


def test_a_machine_without_the_images_is_named(job):
    with pytest.raises(CallError) as refused:
        check_machine(replace(job, folder="/nowhere"))
    assert socket.gethostname() in str(refused.value)
    assert "images does not exist there" in str(refused.value)
    assert "storage that all machines share" in str(refused.value)


def test_a_machine_with_another_release_is_named(job):
    with pytest.raises(CallError, match=r"driver has 0\.0\.1: install") as refused:
        check_machine(replace(job, version="0.0.1"))
    assert f"{socket.gethostname()} has Headgraft {__version__}" in str(refused.value)


def test_known_contents_are_left_to_the_driver():
    digests = [hashlib.sha256(bytes([k])).digest() for k in range(20)]
    index = ContentIndex()
    index.add_current_rows(
        np.frombuffer(b"".join(digests[:10]), np.uint8).reshape(-1, 32), np.arange(10)
    )
    known = KnownContents(index.list_prefixes())
    assert [known.claim(digest, k) for k, digest in enumerate(digests[:10])] == [KNOWN] * 10
    assert [known.claim(digest, k) for k, digest in enumerate(digests[10:])] == [None] * 10
    assert known.claim(digests[12], 99) == 2  # the same content twice in a block
