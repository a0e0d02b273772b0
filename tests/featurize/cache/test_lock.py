"""Who may write: one at a time, where the system can say so; nobody, where the disk is closed."""

import errno
import os
import subprocess
from contextlib import contextmanager

import pytest

import featurize
from featurize.cache import lock
from featurize.cache.lock import WriteLock
from featurize.errors import CacheBusyError, OutputError


def refusing(number):
    def flock(fd, operation):
        raise OSError(number, os.strerror(number))

    return flock


def test_only_a_held_lock_is_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.fcntl, "flock", refusing(errno.EWOULDBLOCK))
    with (
        pytest.raises(CacheBusyError, match="another process is writing"),
        WriteLock(tmp_path / "c.h5"),
    ):
        pass
    monkeypatch.setattr(lock.fcntl, "flock", refusing(errno.EIO))
    with pytest.raises(OutputError, match="Input/output error"), WriteLock(tmp_path / "c.h5"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_that_cannot_lock_is_written_to_and_it_is_said(
    draw, toy, tmp_path, monkeypatch, number
):
    monkeypatch.setattr(lock.fcntl, "flock", refusing(number))
    said = []
    folder = draw(tmp_path / "photos", ["1.png", "2.png"])
    done = featurize.run(folder, tmp_path / "c.h5", backbone=toy, layers="0", say=said.append)
    assert done.computed == 2
    assert any("cannot be locked" in line and os.strerror(number) in line for line in said)


@contextmanager
def read_only(folder):
    """The folder as a mount of its own, read-only; needs the right to mount."""
    done = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_finished_cache_on_a_closed_disk(draw, toy, tmp_path):
    """There is nothing to do, so nothing has to be written; where there is, it is said."""
    folder, path = draw(tmp_path / "photos", ["1.png", "2.png"]), tmp_path / "closed" / "c.h5"
    path.parent.mkdir()
    featurize.run(folder, path, backbone=toy, layers="0")
    path.with_name("c.h5.lock").unlink()
    with read_only(path.parent):
        done = featurize.run(folder, path, backbone=toy)
        assert (done.rows, done.computed) == (2, 0)
        draw(folder, ["3.png"], seed=3)
        with pytest.raises(
            OutputError, match=r"cannot write .*c\.h5: .* \(Read-only file system\)"
        ):
            featurize.run(folder, path, backbone=toy)


def test_a_lock_is_not_taken_through_a_link(tmp_path):
    """What a link of that name points to is somebody else's."""
    other = tmp_path / "other"
    (tmp_path / "c.h5.lock").symlink_to(other)
    with pytest.raises(OutputError), WriteLock(tmp_path / "c.h5"):
        pass
    assert not other.exists()
