"""Images of tar files: shards of WebDataset, or packed folders."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from tarfile import BLOCKSIZE
from typing import Any

from featurize.errors import ImageUnreadableError
from featurize.images import reading
from featurize.images.reading import ImageFile
from featurize.images.reasons import READ_ERROR
from featurize.sources.containers.archives.archive_listing import ArchiveImage, ArchiveRows
from featurize.sources.containers.archives.archive_reader import ArchiveReader
from featurize.sources.containers.archives.dali_index import UntrueIndexError, index_by_dali
from featurize.sources.containers.archives.samples import (
    ALL_COMPONENTS,
    check_split,
    choose_components,
    find_splits,
    split_name,
)
from featurize.sources.containers.archives.shard_copies import ShardCopies, ShardStream
from featurize.sources.containers.archives.tar_index import (
    ShardIndex,
    find_header_problem,
    index_tar,
)
from featurize.sources.containers.archives.window_file import TarHeaderFile, merge_ranges
from featurize.sources.containers.container_source import ContainerSource
from featurize.sources.listing import Container, ImageListing, ImageRead, make_stamp
from featurize.sources.source import SourceOptions
from featurize.sources.stores.store import StoredFile
from featurize.system import memory
from featurize.text import to_printable

HEADER_READ_BYTES = 4096  # a page: small members and the headers after them come at once


@dataclass(frozen=True)
class TarSource(ContainerSource):
    """The images of one tar file, or of several shards; see `ContainerSource`.

    A tar file has no index, so listing goes from header to header. On this machine that reads no
    image. Over a network the shard is read once as a stream, unless an index file of DALI lies
    beside it; `SourceOptions.scratch` keeps what was read so.
    """

    @property
    def kind(self) -> str:
        """What it was taken for."""
        return "tar file" if self.is_single else "tar shards"

    def list_images(self, known: ImageListing | None = None) -> ImageListing:
        """List the images; see `ImageSource.list_images`.

        Labels come along: of ``.cls`` members, and of the scalar fields of ``.json`` members. The
        column ``split`` is of the shards' names, where every one of them says a split.

        Raises
        ------
        CallError
            If there is no image, samples have several images and no component is wanted, or the
            wanted component or split is none of those there.
        """
        rows = ArchiveRows(self, known)
        splits = find_splits(self.names)
        shards: list[tuple[Container, ShardIndex, list[ArchiveImage]]] = []
        for file, known_rows in self.list_unchanged(known):
            if known_rows is not None:
                rows.reuse(Container(*file), known_rows)
                continue
            try:
                shard, index = self._index(file, rows)
            except ImageUnreadableError as error:
                rows.fail(file.name, str(error))
                continue
            if index.problem:
                rows.fail(file.name, index.problem)
            if index.notice:
                rows.notices.append(f"{to_printable(file.name)}: {index.notice}")
            for name, reason in index.skipped:
                rows.skipped.add(self.make_key(file.name, name), reason)
            shards.append((shard, index, rows.select(file.name, _describe_images(shard, index))))
        names = ([image.name for image in images] for _, _, images in shards)
        components = choose_components(self.root, names, self.options.component)
        for shard, index, images in shards:
            if components:
                images = [image for image in images if split_name(image.name)[1] in components]
            split = {"split": splits[shard.name]} if splits else {}
            texts = {
                image.name: index.labels.get(split_name(image.name)[0], {}) | split
                for image in images
            }
            rows.add(shard, images, texts)
        return rows.build()

    def select_files(self) -> list[StoredFile]:
        """Select the shards of the wanted split; see `ContainerSource.select_files`."""
        splits = find_splits(self.names)
        wanted = check_split(self.options.split, splits, self.root, len(self.names))
        return [file for file in self.files if wanted in (None, splits.get(file.name))]

    def locate(self, paths: Sequence[str]) -> ImageListing:
        """List images by their keys; the containers that these name are indexed."""
        files = self.files
        if not self.is_single:
            parts = (path.split("/") for path in paths)
            above = {"/".join(p[:depth]) for p in parts for depth in range(1, len(p))}
            files = tuple(file for file in files if file.name in above) or files[:1]
        options = SourceOptions(component=ALL_COMPONENTS, scratch=self.options.scratch)
        listing = replace(self, files=files, options=options).list_images()
        return replace(listing.select(paths), source=self)

    def open_reader(self, listing: ImageListing) -> "TarReader":
        """Open a reader; see `ImageSource.open_reader`."""
        return TarReader(self, listing)

    def describe(self) -> dict[str, Any]:
        """Describe the source; see `ImageSource.describe`."""
        options = {"component": self.options.component, "split": self.options.split}
        return {"kind": "tar", **{name: value for name, value in options.items() if value}}

    def _index(self, file: StoredFile, rows: ArchiveRows) -> tuple[Container, ShardIndex]:
        """Index a shard: by its headers here, by its index file or as a stream elsewhere."""
        container = Container(*file)
        if not self.store.is_remote:
            with closing(self.store.open_file(file.name)) as opened:
                container = _describe_file(file.name, opened.fileno())
                return container, _index_local(opened.fileno(), container)
        try:
            if file.size > 0 and (index := index_by_dali(self.store, file)) is not None:
                return container, index
        except UntrueIndexError as error:
            rows.notices.append(
                f"the index file beside {to_printable(file.name)} is not used, and the shard is "
                f"read: {error}"
            )
        copies = self._open_copies()
        fd = None if copies is None else copies.find(self.store.root, container)
        if fd is not None:
            try:
                return container, _index_local(fd, container)
            finally:
                os.close(fd)
        copies = copies or ShardCopies("", max_bytes=0)
        with (
            closing(self.store.open_file(file.name)) as opened,
            copies.write(self.store.root, container) as writer,
        ):
            stream = ShardStream(opened, container, writer)
            index = index_tar(stream, file.name)
            if not index.problem:
                stream.drain()
        return container, index

    def _open_copies(self) -> ShardCopies | None:
        return ShardCopies(self.options.scratch) if self.options.scratch else None


def _describe_images(shard: Container, index: ShardIndex) -> list[ArchiveImage]:
    return [
        ArchiveImage(
            name,
            offset,
            size,
            make_stamp(shard.size, shard.stamp, offset) if shard.stamp else 0,
        )
        for name, (offset, size) in index.images.items()
    ]


def _describe_file(name: str, fd: int) -> Container:
    status = os.fstat(fd)
    return Container(name, status.st_size, reading.stamp_of_file(status))


def _index_local(fd: int, shard: Container) -> ShardIndex:
    def read_at(position: int, n_bytes: int) -> bytes:
        try:
            return os.pread(fd, max(n_bytes, HEADER_READ_BYTES), position)
        except OSError as error:
            raise reading.to_unreadable_error(error, shard.name) from error

    return index_tar(TarHeaderFile(read_at, shard.size), shard.name)


class TarReader(ArchiveReader):
    """Reads images of tar files; see `ArchiveReader`.

    Before every image's bytes its header is read too, and must be the image's. So neither a shard
    that has changed nor an untrue index gives the bytes of another image.
    """

    _fd = -1
    _copies: ShardCopies | None = None  # where the open file is a copy

    def open_container(self, container: Container) -> None:
        """Open a file of this machine, or the copy of another one; ranges need none."""
        store, scratch = self.source.store, self.source.options.scratch
        if not store.is_remote:
            with closing(store.open_file(container.name)) as file:
                self._fd = os.dup(file.fileno())
        elif scratch and (fd := ShardCopies(scratch).find(store.root, container)) is not None:
            self._fd, self._copies = fd, ShardCopies(scratch)

    def close_container(self) -> None:
        """Close the file that is open."""
        fd, self._fd, self._copies = self._fd, -1, None
        if fd >= 0:
            os.close(fd)

    def read_rows(self, container: Container, rows: list[int]) -> Iterator[ImageRead]:
        """Read images of the open container, or of its ranges."""
        if self._fd < 0:
            yield from self._read_ranges(container, rows)
            return
        for row in rows:
            try:
                yield ImageRead(row, self._read_image(container, row))
            except ImageUnreadableError as error:
                yield ImageRead(row, error)

    def _read_image(self, container: Container, row: int) -> ImageFile:
        path, size = self.listing.paths[row], int(self.listing.sizes[row])
        offset = int(self.places.offsets[row])
        try:
            with memory.reserve(size, path):
                header = os.pread(self._fd, BLOCKSIZE, offset - BLOCKSIZE)
                data = os.pread(self._fd, size, offset)
            status = os.fstat(self._fd)
        except (OSError, OverflowError, ValueError, MemoryError) as error:
            raise reading.to_unreadable_error(error, path) from error
        is_same_time = self._copies or container.stamp in (0, status.st_mtime_ns)
        if status.st_size != container.size or not is_same_time:
            problem = f"{path}: {container.name} has changed since it was listed"
            raise ImageUnreadableError(problem, READ_ERROR)
        return self._check(container, row, header, data)

    def _read_ranges(self, container: Container, rows: list[int]) -> Iterator[ImageRead]:
        offsets = self.places.offsets[rows].tolist()
        stops = (self.places.offsets[rows] + self.listing.sizes[rows]).tolist()
        spans = [(offset - BLOCKSIZE, stop) for offset, stop in zip(offsets, stops, strict=True)]
        for start, stop, members in merge_ranges(spans):
            try:
                data = self._read_range(container, start, stop)
            except ImageUnreadableError as error:
                yield from (ImageRead(rows[i], error) for i in members)
                continue
            for i in members:
                at = offsets[i] - start
                header, content = data[at - BLOCKSIZE : at], data[at : stops[i] - start]
                try:
                    yield ImageRead(rows[i], self._check(container, rows[i], header, content))
                except ImageUnreadableError as error:
                    yield ImageRead(rows[i], error)

    def _read_range(self, container: Container, start: int, stop: int) -> bytes:
        try:
            with memory.reserve(stop - start, f"images of {container.name}"):
                return self.source.store.read_range(container.name, start, stop)
        except MemoryError as error:
            raise reading.to_unreadable_error(error, container.name) from error

    def _check(self, container: Container, row: int, header: bytes, data: bytes) -> ImageFile:
        """Take bytes for an image if the header before them is the image's."""
        path, size = self.listing.paths[row], int(self.listing.sizes[row])
        problem = find_header_problem(header, self.find_name(container, row), size)
        if not problem and len(data) < size:
            problem = "it is cut short"
        if not problem:
            return ImageFile(data, size, int(self.listing.stamps[row]))
        if self._copies is not None:
            self._copies.remove(self.source.store.root, container)
        raise ImageUnreadableError(
            f"{path} is not where it was listed: {problem}. {container.name} has changed, or the "
            "index file beside it is another shard's",
            READ_ERROR,
        )
