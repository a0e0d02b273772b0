"""Files that are written whole or not at all, and bytes at their places."""

import errno
import os

import numpy as np
import pytest

from classify.errors import OutputError as ClassifyOutputError
from featurize.cache.format import iter_row_runs
from featurize.errors import CacheUnreachableError, OutputError
from featurize.files import atomic_write, pread_into, pwrite_all


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write("first")

    def fail():
        with atomic_write(path) as file:
            file.write(b"half")
            raise CacheUnreachableError("not the file's own error")

    with pytest.raises(CacheUnreachableError):
        fail()
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OutputError, ClassifyOutputError])
def test_what_the_system_refuses_is_the_error_asked_for(tmp_path, error):
    path = tmp_path / "a.bin"

    def fail():
        with atomic_write(path, error=error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(error, match=r"cannot write .*a\.bin: No space left on device"):
        fail()
    assert not os.listdir(tmp_path)
    with (
        pytest.raises(error, match="cannot write"),
        atomic_write(tmp_path / "no" / "a", error=error),
    ):
        pass


@pytest.mark.parametrize("fallback", [False, True])
def test_bytes_at_their_places(tmp_path, monkeypatch, fallback):
    if fallback:  # systems without calls that take a position
        monkeypatch.delattr(os, "preadv", raising=False)
        monkeypatch.delattr(os, "pwrite", raising=False)
    fd = os.open(tmp_path / "a.bin", os.O_RDWR | os.O_CREAT)
    try:
        pwrite_all(fd, b"world", 6)
        pwrite_all(fd, memoryview(b"hello "), 0)
        data = bytearray(8)
        assert pread_into(fd, memoryview(data), 3) == 8
        assert bytes(data) == b"lo world"
        assert pread_into(fd, memoryview(data), 9) == 2  # the file ends
    finally:
        os.close(fd)


def test_neighbouring_rows_go_together():
    rows = np.array([4, 5, 6, 2, 9, 10])
    assert [rows[run].tolist() for run in iter_row_runs(rows)] == [[4, 5, 6], [2], [9, 10]]
    assert list(iter_row_runs(rows[:0])) == []
