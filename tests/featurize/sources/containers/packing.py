"""What tests of archives share: packing, reading back, and a store that counts its requests."""

import io
import os
import tarfile
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from featurize.errors import ImageUnreadableError
from featurize.images.reading import ImageFile
from featurize.images.reasons import READ_ERROR
from featurize.sources.listing import read_images
from featurize.sources.source import SourceOptions
from featurize.sources.stores.local_store import LocalStore

LONG_AGO = 1_700_000_000


def make_images(count, low=500, high=4000, seed=0):
    """So many contents, all different."""
    rng = np.random.default_rng(seed)
    return [rng.bytes(int(size)) for size in rng.integers(low, high, count)]


def add(archive, name, data=b"", **fields):
    """Add one member; `fields` are those of its header."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field_name, value in fields.items():
        setattr(member, field_name, value)
    archive.addfile(member, io.BytesIO(data))


def pack(path, members, **options):
    """Write a tar file of long ago: ``pack(path, [(name, data), (name, data, fields)])``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, data, *fields in members:
            add(archive, name, data, **(fields[0] if fields else {}))
    age(path)
    return path


def age(path):
    """Make a file's time one that proves something."""
    os.utime(path, (LONG_AGO, LONG_AGO))


def open_files(kind, folder, *names, is_single=False, store=None, **options):
    """A source of files in a folder; the one line to change when `open_source` opens them."""
    local = LocalStore(str(folder))
    files = [local.stat_file(name) for name in names] or list(local.list_files())
    files = [file for file in files if not file.name.endswith(".idx")]
    return kind(store or local, tuple(files), is_single, SourceOptions(**options))


def read_all(listing):
    """Contents by key; the reason of an image that cannot be read."""
    contents = {}
    for row, image in read_images(listing, range(len(listing.paths))):
        if isinstance(image, ImageFile):
            assert len(image.data) == image.size == listing.sizes[row]
            assert image.stamp == listing.stamps[row]
            contents[listing.paths[row]] = image.data
        else:
            contents[listing.paths[row]] = image.reason
    assert len(contents) == len(listing.paths)
    return contents


@dataclass(frozen=True)
class FarStore:
    """The files of a folder as if behind a network: every request is counted."""

    folder: str
    requests: list = field(default_factory=list, compare=False)
    trouble: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(breaks_at=None, refuses=()), compare=False
    )
    root: str = "s3://bucket/shards"
    is_remote = True

    def stat_file(self, name):
        self.requests.append(("stat", name))
        return LocalStore(self.folder).stat_file(name)

    def open_file(self, name):
        self.requests.append(("stream", name))
        file = LocalStore(self.folder).open_file(name)
        return _Breaking(file, self.trouble.breaks_at) if self.trouble.breaks_at else file

    def read_range(self, name, start, stop):
        assert 0 <= start < stop
        self.requests.append(("range", name, start, stop))
        if name in self.trouble.refuses:
            raise ImageUnreadableError(f"{name} cannot be read", READ_ERROR)
        return LocalStore(self.folder).read_range(name, start, stop)

    def count(self, kind, suffix=".tar"):
        return sum(r[0] == kind and r[1].endswith(suffix) for r in self.requests)


class _Breaking:
    """A connection that breaks, with a message that nobody should see."""

    def __init__(self, file, at):
        self._file, self._at = file, at

    def read(self, size):
        if self._file.tell() >= self._at:
            raise RuntimeError("https://host/x?X-Amz-Signature=secret broke")
        return self._file.read(min(size, self._at))

    def close(self):
        self._file.close()
