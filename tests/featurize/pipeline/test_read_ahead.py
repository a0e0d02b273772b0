"""Reading ahead: how much is held, and what a source may do without stopping a run."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from featurize.errors import ImageUnreadableError
from featurize.images import reasons
from featurize.images.reading import ImageFile
from featurize.pipeline import read_ahead
from featurize.pipeline.read_ahead import ReadAhead
from featurize.sources.listing import ImageListing, ImageRead


@dataclass
class Numbers:
    """A source of rows of `size` bytes, in chunks of `chunk`; it counts what it gave out."""

    size: int = 10
    chunk: int = 4
    n_readers: int = 2
    leaves_out: tuple = ()
    fails_at: int = -1
    given: list = field(default_factory=list)
    closed: list = field(default_factory=list)
    kind, root, is_remote = "numbers", "numbers", False

    def list_images(self, count):
        keys = [f"{row:04}" for row in range(count)]
        return ImageListing(self, keys, np.full(count, self.size), np.ones(count, np.int64))

    def split_rows(self, listing, rows):
        return [rows[start : start + self.chunk] for start in range(0, len(rows), self.chunk)]

    def open_reader(self, listing):
        return Reader(self)


@dataclass
class Reader:
    source: Numbers

    def read(self, rows):
        for row in rows.tolist():
            if row == self.source.fails_at:
                raise RuntimeError("the source broke")
            if row not in self.source.leaves_out:
                self.source.given.append(row)
                yield ImageRead(row, ImageFile(bytes(self.source.size), self.source.size, 1))

    def close(self):
        self.source.closed.append(threading.current_thread().name)


def start(source, count, limit=1000, n_consumers=1):
    return ReadAhead(source.list_images(count), np.arange(count), limit, n_consumers)


def settle(source):
    """Wait until nothing more is read."""
    count = -1
    while count != len(source.given):
        count = len(source.given)
        time.sleep(0.1)
    return count


def take_all(ahead):
    taken = []
    while items := ahead.take():
        taken += [item.read for item in items]
        ahead.release(1000, len(items))
    return taken


def test_every_row_comes_once_and_the_readers_are_closed():
    source = Numbers()
    rows = [read.row for read in take_all(start(source, 103))]
    assert sorted(rows) == list(range(103))
    assert source.closed == ["read", "read"]


def test_no_more_images_than_the_limit_are_read():
    source = Numbers(n_readers=3)
    ahead = start(source, 500, limit=20)
    assert settle(source) <= 20 + 3  # and the one that each reader holds
    for _ in range(5):
        ahead.take()
        ahead.release(20)
    assert settle(source) <= 25 + 3
    ahead.close()


def test_no_more_bytes_than_the_limit_are_held(monkeypatch):
    monkeypatch.setattr(read_ahead, "MAX_BYTES_AHEAD", 1000)
    source = Numbers(size=300, n_readers=1)
    ahead = start(source, 50)
    assert settle(source) == 4  # three, and the one in hand
    ahead.take()
    assert settle(source) == 5
    ahead.close()


def test_an_image_beyond_the_limit_comes_alone(monkeypatch):
    monkeypatch.setattr(read_ahead, "MAX_BYTES_AHEAD", 1000)
    assert len(take_all(start(Numbers(size=5000), 9))) == 9


def test_a_row_that_a_source_forgets_fails():
    reads = {read.row: read.image for read in take_all(start(Numbers(leaves_out=(3, 7)), 10))}
    assert sorted(reads) == list(range(10))
    for row in (3, 7):
        assert isinstance(reads[row], ImageUnreadableError)
        assert reads[row].reason == reasons.READ_ERROR


def test_an_error_beyond_an_image_is_raised():
    ahead = start(Numbers(fails_at=5), 10)
    with pytest.raises(RuntimeError, match="the source broke"):
        take_all(ahead)
    ahead.close()


def test_close_ends_every_consumer():
    source = Numbers()
    ahead = start(source, 1000, limit=5, n_consumers=3)
    taken = [ahead.take() for _ in range(5)]
    assert all(taken)
    ended = []
    threads = [threading.Thread(target=lambda: ended.append(ahead.take())) for _ in range(3)]
    for thread in threads:
        thread.start()
    ahead.close()
    for thread in threads:
        thread.join(10)
    assert ended == [[]] * 3


def test_a_consumer_takes_its_share_of_what_is_there():
    source = Numbers()
    ahead = start(source, 40, limit=40, n_consumers=3)
    settle(source)
    assert len(ahead.take(most=16)) == 15  # the first, and a third of the others and the ends
    assert len(ahead.take(most=16)) == 10
    assert len(ahead.take(most=2)) == 2
    rest = []
    while items := ahead.take(most=16):
        rest += items
    assert len(rest) == 13
    assert [ahead.take(most=16) for _ in range(2)] == [[], []]  # of each consumer an end


def test_what_goes_wrong_comes_after_what_was_read():
    source = Numbers(fails_at=30, n_readers=1)
    ahead = start(source, 40, limit=100, n_consumers=1)
    settle(source)
    assert len(ahead.take(most=16)) == 16
    with pytest.raises(RuntimeError, match="the source broke"):
        take_all(ahead)
    ahead.close()


def test_few_large_images_are_taken_at_a_time(monkeypatch):
    monkeypatch.setattr(read_ahead, "MAX_BYTES_TAKEN", 1000)
    source = Numbers(size=400)
    ahead = start(source, 40, limit=40, n_consumers=1)
    settle(source)
    assert len(ahead.take(most=16)) == 3
    ahead.close()
