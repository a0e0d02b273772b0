"""Images of zip archives."""

import copy
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import IO, Any, cast

from featurize.errors import CallError, ImageUnreadableError
from featurize.images import reading
from featurize.images.reading import ImageFile
from featurize.images.reasons import DAMAGED, NO_PERMISSION, READ_ERROR, UNSUPPORTED
from featurize.sources.containers.archives.archive_listing import (
    REPEATED,
    ArchiveImage,
    ArchiveRows,
    clean_name,
    is_image_name,
)
from featurize.sources.containers.archives.archive_reader import ArchiveReader
from featurize.sources.containers.archives.window_file import (
    MAX_RANGE_BYTES,
    WindowFile,
    merge_ranges,
)
from featurize.sources.containers.container_source import ContainerSource
from featurize.sources.listing import Container, ImageListing, ImageRead, make_stamp
from featurize.sources.source import SourceOptions
from featurize.sources.stores.store import Store
from featurize.system import memory
from featurize.text import to_printable

MAX_DIRECTORY_BYTES = 256 << 20  # of some two million members
MEMORY_PER_DIRECTORY_BYTE = 8  # what reading a directory takes
MIN_READ_BYTES = 64 << 10
TAIL_BYTES = 256 << 10  # read first: the directory of a small archive
HEADER_BYTES = 30  # before a member's name
SLACK_BYTES = 512  # of fields that a member's header may have beyond the directory's
ENCRYPTED = 0x41  # bits of the flags: by a password, strongly

BACKSLASH = "its name has a backslash; pack the archive anew with / between folders"
OUTSIDE = "its place is outside of the archive"
OVERLAPPING = "it lies over another member, as in archives that are made to overflow"

_ERRORS = (
    zipfile.BadZipFile,
    OSError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class ZipSource(ContainerSource):
    """The images of one zip archive, or of several; see `ContainerSource`.

    An archive's directory says where its members lie. A version stamp is of a member's checksum
    and size, so an archive that is packed anew changes none.
    """

    @property
    def kind(self) -> str:
        """What it was taken for."""
        return "zip archive" if self.is_single else "zip archives"

    def list_images(self, known: ImageListing | None = None) -> ImageListing:
        """List the images by the archives' directories; see `ImageSource.list_images`."""
        rows = ArchiveRows(self, known)
        for file, known_rows in self.list_unchanged(known):
            if known_rows is not None:
                rows.reuse(Container(*file), known_rows)
                continue
            try:
                opened = OpenZip(self.store, Container(*file))
            except ImageUnreadableError as error:
                rows.fail(file.name, str(error))
                continue
            with closing(opened):
                images, skipped = _list_members(opened)
            for name, reason in skipped:
                rows.skipped.add(self.make_key(file.name, name), reason)
            rows.add(opened.container, rows.select(file.name, images), {})
        return rows.build()

    def locate(self, paths: Sequence[str]) -> ImageListing:
        """List images by their keys; the directories of the archives are read."""
        listing = replace(self, options=SourceOptions()).list_images()
        return replace(listing.select(paths), source=self)

    def open_reader(self, listing: ImageListing) -> "ZipReader":
        """Open a reader; see `ImageSource.open_reader`."""
        return ZipReader(self, listing)

    def describe(self) -> dict[str, Any]:
        """Describe the source; see `ImageSource.describe`."""
        return {"kind": "zip"}


class OpenZip:
    """An archive whose directory has been read.

    Parameters
    ----------
    store : Store
    container : Container
    is_listed : bool
        Whether the file must be as the container says.

    Attributes
    ----------
    container : Container
        As it is now, where the store is this machine's.
    archive : zipfile.ZipFile

    Raises
    ------
    ImageUnreadableError
        If it cannot be opened, is no archive, or has changed.
    """

    def __init__(self, store: Store, container: Container, is_listed: bool = False) -> None:
        self._store, self._fd = store, -1
        self._memory_factor = MEMORY_PER_DIRECTORY_BYTE
        if store.is_remote:
            size = _find_size(store, container)
        else:
            with closing(store.open_file(container.name)) as file:
                self._fd = os.dup(file.fileno())
            status = os.fstat(self._fd)
            size, stamp = status.st_size, reading.stamp_of_file(status)
            listed, container = container, Container(container.name, size, stamp)
            if is_listed and listed != container and listed.stamp:
                self.close()
                problem = f"{container.name} has changed since it was listed"
                raise ImageUnreadableError(problem, READ_ERROR)
        self.container = container
        self.window = WindowFile(self._read_at, size)
        try:
            self.archive = self._read_directory()
        except BaseException:
            self.close()
            raise
        self._memory_factor = 1

    def close(self) -> None:
        """Close the archive."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def has_changed(self) -> bool:
        """Tell whether the file is another one than when it was opened; of this machine alone."""
        if self._fd < 0:
            return False
        status = os.fstat(self._fd)
        is_same_time = self.container.stamp in (0, status.st_mtime_ns)
        return status.st_size != self.container.size or not is_same_time

    def _read_at(self, position: int, n_bytes: int) -> bytes:
        name, n_bytes = self.container.name, max(n_bytes, MIN_READ_BYTES)
        try:
            with memory.reserve(self._memory_factor * n_bytes, f"members of {name}"):
                if self._fd >= 0:
                    return os.pread(self._fd, n_bytes, position)
                stop = min(self.window.size, position + n_bytes)
                return self._store.read_range(name, position, stop)
        except (OSError, MemoryError) as error:
            raise reading.to_unreadable_error(error, name) from error

    def _read_directory(self) -> zipfile.ZipFile:
        size = self.window.size
        if not size:
            raise ImageUnreadableError("it is empty", DAMAGED)
        tail = min(size, TAIL_BYTES)
        self.window.max_read_bytes = MAX_DIRECTORY_BYTES
        self.window.load(size - tail, tail)
        try:
            archive = zipfile.ZipFile(cast("IO[bytes]", self.window))
        except ImageUnreadableError:
            raise
        except _ERRORS as error:
            raise ImageUnreadableError(
                f"it is no zip archive, or it is cut short or damaged: {to_printable(error)}",
                DAMAGED,
            ) from error
        self.window.max_read_bytes = 2 * reading.MAX_FILE_BYTES
        return archive


def _find_size(store: Store, container: Container) -> int:
    size = container.size
    if size < 0:
        try:
            size = store.stat_file(container.name).size
        except CallError as error:
            raise ImageUnreadableError(str(error), READ_ERROR) from error
    if size < 0:
        raise ImageUnreadableError("its size is unknown, so its end cannot be read", READ_ERROR)
    return size


def _list_members(opened: OpenZip) -> tuple[list[ArchiveImage], list[tuple[str, str]]]:
    """List the images of an archive, and what is skipped of it."""
    images: dict[str, ArchiveImage] = {}
    skipped = []
    end = 0
    for info in sorted(opened.archive.infolist(), key=lambda info: info.header_offset):
        is_overlapping = info.header_offset < end
        end = max(end, info.header_offset + HEADER_BYTES + info.compress_size)
        name = clean_name(info.orig_filename)
        if info.is_dir() or not is_image_name(name.replace("\\", "/")):
            continue
        if not 0 <= info.header_offset < opened.window.size:
            problem = OUTSIDE
        elif is_overlapping:
            problem = OVERLAPPING
        else:
            problem = BACKSLASH if "\\" in name else ""
        if problem:
            skipped.append((name, problem))
            continue
        if name in images:
            skipped.append((name, REPEATED))
        stamp = make_stamp(info.CRC, info.file_size)
        images[name] = ArchiveImage(name, info.header_offset, info.file_size, stamp)
    return list(images.values()), skipped


class ZipReader(ArchiveReader):
    """Reads images of zip archives; see `ArchiveReader`. It reads a directory once."""

    _opened_zip: OpenZip | None = None
    _infos: dict[int, zipfile.ZipInfo]  # by place, of the open archive

    def open_container(self, container: Container) -> None:
        """Open an archive, and read its directory."""
        opened = OpenZip(self.source.store, container, is_listed=True)
        self._opened_zip = opened
        self._infos = {info.header_offset: info for info in opened.archive.infolist()}

    def close_container(self) -> None:
        """Close the archive that is open."""
        opened, self._opened_zip, self._infos = self._opened_zip, None, {}
        if opened is not None:
            opened.close()

    def read_rows(self, container: Container, rows: list[int]) -> Iterator[ImageRead]:
        """Read images of the open archive: neighbours at once."""
        opened = self._opened_zip
        if opened is None:
            return
        offsets = self.places.offsets[rows].tolist()
        spans = [self._find_span(offset, opened.window.size) for offset in offsets]
        for start, stop, members in merge_ranges(spans):
            try:
                if 0 < stop - start <= MAX_RANGE_BYTES:
                    opened.window.load(start, stop - start)
            except ImageUnreadableError as error:
                yield from (ImageRead(rows[i], error) for i in members)
                continue
            for i in members:
                try:
                    yield ImageRead(rows[i], self._read_image(opened, rows[i], offsets[i]))
                except ImageUnreadableError as error:
                    yield ImageRead(rows[i], error)

    def _find_span(self, offset: int, file_size: int) -> tuple[int, int]:
        info = self._infos.get(offset)
        if info is None:
            return offset, offset
        n_bytes = HEADER_BYTES + len(info.orig_filename.encode("utf-8", "replace"))
        n_bytes += len(info.extra) + SLACK_BYTES + info.compress_size
        return offset, min(file_size, offset + n_bytes)

    def _read_image(self, opened: OpenZip, row: int, offset: int) -> ImageFile:
        path, size = self.listing.paths[row], int(self.listing.sizes[row])
        info = self._infos.get(offset)
        name = self.find_name(opened.container, row)
        if info is None or clean_name(info.orig_filename) != name or info.file_size != size:
            problem = f"{path}: {opened.container.name} has changed since it was listed"
            raise ImageUnreadableError(problem, READ_ERROR)
        if info.flag_bits & ENCRYPTED:
            raise ImageUnreadableError(f"{path} is encrypted; unpack it first", NO_PERMISSION)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = f"{path} is compressed in way {info.compress_type}; pack it with deflate"
            raise ImageUnreadableError(problem, UNSUPPORTED)
        try:
            # The library gives no more than is declared; one byte more shows whether there is.
            longer = copy.copy(info)
            longer.file_size = size + 1
            n_bytes = size + min(size, info.compress_size)
            with memory.reserve(n_bytes, path), opened.archive.open(longer) as member:
                data = member.read(size + 1)
        except ImageUnreadableError:
            raise
        except MemoryError as error:
            raise reading.to_unreadable_error(error, path) from error
        except _ERRORS as error:
            raise self._explain(opened, path, str(error)) from error
        if len(data) != size:
            raise self._explain(opened, path, "it has another size than the directory says")
        return ImageFile(data, size, make_stamp(info.CRC, size))

    def _explain(self, opened: OpenZip, path: str, problem: str) -> ImageUnreadableError:
        if opened.has_changed():
            problem = f"{path}: {opened.container.name} has changed since it was listed"
            return ImageUnreadableError(problem, READ_ERROR)
        return ImageUnreadableError(f"{path} is damaged in its archive: {problem}", DAMAGED)
