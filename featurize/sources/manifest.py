"""Images named by a list: paths below a folder or URL, and whole URLs."""

import os
import posixpath
import shlex
import stat
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np

from featurize.errors import CallError
from featurize.images import reading
from featurize.sources.containers.tables.schema import (
    MAX_TEXT_CHARS,
    TOO_LONG,
    TOO_MANY,
    choose_columns,
    find_column_problem,
)
from featurize.sources.containers.tables.splits import is_of_split
from featurize.sources.file_reader import split_evenly
from featurize.sources.folder import OUTSIDE_LINK
from featurize.sources.listing import (
    UNKNOWN_SIZE,
    ImageListing,
    ImageRead,
    SkippedNames,
    find_key_problem,
    make_key,
    make_stamp,
)
from featurize.sources.manifest_rows import (
    ID_TITLE,
    VERSION_TITLES,
    ManifestRows,
    read_manifest,
)
from featurize.sources.patterns import select_images
from featurize.sources.source import DEFAULT_OPTIONS, SourceOptions
from featurize.sources.stores.addresses import (
    HTTP,
    PROTOCOLS,
    is_address,
    parse_address,
    redact,
)
from featurize.sources.stores.local_store import LocalStore, join_path
from featurize.sources.stores.remote_store import RemoteStore, UrlStore
from featurize.sources.stores.store import Store, StoredFile
from featurize.text import to_printable

CHUNK_FILES = 16  # of this machine, read one after another
CHUNK_REQUESTS = 64  # of a network, at once

EMPTY_PATH = "the row has no path"
CHAINED = "chains of URLs, with ::, are not read"
UNKNOWN_URL = f"it is no URL that is read; those begin with {'://, '.join(PROTOCOLS)}://"
NO_LOCAL_FILES = "a list behind a network names no files of this machine"
LEADS_OUT = "its path leads out of the folder"
OUTSIDE = "it lies outside of the folder where paths begin"
REPEATED = "the list has it already; its first row counts"
CONTRADICTED = "the list has it already, with another label; its first row counts"


@dataclass(frozen=True)
class ManifestSource:
    """Images named by a list: CSV, JSON lines, or Parquet.

    An image's key is its ``id``, where the list has such a column, or else its path or URL as
    written; a URL without what is secret in it, and with one slash behind its protocol. A file of
    this machine is read only if it lies below the list's folder, or below the folder given as
    ``root``.

    What a URL leads to cannot be looked at without a request for each, so it is taken for unchanged
    as long as the URL is the same, without what is secret in it, and so is the row's ``etag`` or
    ``sha256``, where the list has such a column; ``--rehash`` looks.

    Parameters
    ----------
    store : Store
        Where the list lies.
    file : StoredFile
        The list.
    options : SourceOptions
        Its ``root``: the folder or URL where paths begin, by default the list's own folder.
    has_urls : bool
        Whether the list was found to name URLs.
    """

    store: Store
    file: StoredFile
    options: SourceOptions = DEFAULT_OPTIONS
    has_urls: bool = False
    kind = "list of images"
    n_readers = 4

    @property
    def root(self) -> str:
        """The list."""
        root = self.store.root
        return redact(f"{root.rstrip('/')}/{self.file.name}" if root else self.file.name)

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""
        return self.has_urls or self._find_base().store.is_remote

    def list_images(self, known: ImageListing | None = None) -> ImageListing:
        """List the images that the list names; see `ImageSource.list_images`.

        Files of this machine are looked at, not opened; one that is missing is a row that fails.
        """
        options = self.options
        rows = read_manifest(self.store, self.file, self.root, options.column)
        lister = _RowLister(self._find_base(), rows, rows.choose_image_column(options.column))
        listing = lister.build(self)
        keep = np.ones(len(listing.paths), bool)
        if options.split is not None:
            keep = is_of_split(listing, options.split)
        return select_images(listing, options.include, options.exclude, keep)

    def locate(self, paths: Sequence[str]) -> ImageListing:
        """List images by their keys; the list is read."""
        return self.list_images().select(paths)

    def split_rows(self, listing: ImageListing, rows: np.ndarray) -> list[np.ndarray]:
        """Split rows into runs of a few files."""
        return split_evenly(rows, CHUNK_REQUESTS if self.is_remote else CHUNK_FILES)

    def open_reader(self, listing: ImageListing) -> "ManifestReader":
        """Open a reader; see `ImageSource.open_reader`."""
        return ManifestReader(self._find_base().store, listing)

    def describe(self) -> dict[str, Any]:
        """Describe the source; see `ImageSource.describe`."""
        root = self.options.root
        options = {
            "column": self.options.column,
            "split": self.options.split,
            "root": redact(root) if root else None,
        }
        return {"kind": "list"} | {name: text for name, text in options.items() if text}

    def _find_base(self) -> "_Base":
        """Find where paths begin."""
        root = self.options.root
        if root is None:
            return _Base(self.store, posixpath.dirname(self.file.name))
        if is_address(root) and not Path(root).is_dir():
            address = parse_address(root)
            if address.protocol != "file":
                return _Base(RemoteStore(address), "")
            root = address.path
        if not Path(root).is_dir():
            problem = "is not a folder" if Path(root).exists() else "does not exist"
            raise CallError(f"--root {root} {problem}; give the folder where the paths begin")
        return _Base(LocalStore(root, self.options.follow), "")


class ManifestReader:
    """Reads images by their names in a store, or by their URLs.

    Parameters
    ----------
    store : Store
        Where paths begin.
    listing : ImageListing
        With addresses.
    """

    def __init__(self, store: Store, listing: ImageListing) -> None:
        self._store, self._listing = store, listing

    def read(self, rows: np.ndarray) -> Iterator[ImageRead]:
        """Read images; see `ImageReader.read`."""
        listing, numbers = self._listing, rows.tolist()
        if listing.addresses is None:
            raise ValueError("the listing of a list of images has addresses")
        urls = [row for row in numbers if _is_url(listing.addresses[row])]
        files = [row for row in numbers if not _is_url(listing.addresses[row])]
        stores: list[tuple[Store, list[int]]] = [(self._store, files), (UrlStore(), urls)]
        for store, chosen in stores:
            if chosen:
                names = [listing.addresses[row] for row in chosen]
                stamps = [int(listing.stamps[row]) for row in chosen]
                for i, image in store.read_files(names, stamps):
                    yield ImageRead(chosen[i], image)

    def close(self) -> None:
        """Do nothing: each file is closed when it has been read."""


def _is_url(address: str) -> bool:
    return "://" in address  # a name has no empty part


class _Base(NamedTuple):
    """Where paths of a list begin: a store, and a folder in it."""

    store: Store
    prefix: str

    @property
    def folder(self) -> str:
        """The folder of this machine, absolute; empty behind a network."""
        if not isinstance(self.store, LocalStore):
            return ""
        return os.path.abspath(Path(self.store.root, self.prefix))  # noqa: PTH100 - not resolved

    @property
    def is_http(self) -> bool:
        """Whether names are percent-encoded."""
        return isinstance(self.store, RemoteStore) and self.store.address.protocol in HTTP


class _PassedOverError(Exception):
    """A row names nothing that may be read; the message says why."""


class _RowLister:
    """Makes the listing of a list's rows."""

    def __init__(self, base: _Base, rows: ManifestRows, column: str) -> None:
        self._base, self._rows, self._column = base, rows, column
        self._folder = base.folder
        self._real_folder = os.path.realpath(self._folder) if self._folder else ""
        self._skipped = SkippedNames()
        self._outside: list[str] = []
        self._is_inside: dict[str, bool] = {"": True}

    def build(self, source: ManifestSource) -> ImageListing:
        """Build the listing of all rows that may be read."""
        rows = self._rows
        ids = None if self._column == ID_TITLE else rows.columns.get(ID_TITLE)
        versions = [rows.columns[name] for name in VERSION_TITLES if name in rows.columns]
        labels = rows.columns.get("label")
        row_of: dict[str, int] = {}
        addresses: list[str] = []
        sizes, stamps = array("q"), array("q")
        for row, text in enumerate(rows.columns[self._column]):
            try:
                path, address = self._resolve(text)
                key = make_key(path if ids is None else ids[row].strip())
                if problem := find_key_problem(key):
                    raise _PassedOverError(problem)
                if key in row_of:
                    is_same = labels is None or labels[row_of[key]] == labels[row]
                    raise _PassedOverError(REPEATED if is_same else CONTRADICTED)
                version = next((cells[row].strip() for cells in versions if cells[row].strip()), "")
                size, stamp = self._look(path, address, version)
            except _PassedOverError as error:
                self._skipped.add(redact(text) or f"row {row + 1:,}", str(error))
                continue
            row_of[key] = row
            addresses.append(address)
            sizes.append(size)
            stamps.append(stamp)
        keys = list(row_of)
        order = sorted(range(len(keys)), key=keys.__getitem__)
        columns = self._take_columns([row_of[keys[i]] for i in order])
        self._skip_outside()
        skipped = self._skipped.describe()
        if not keys:
            raise CallError(". ".join([f"no image in {source.root}", *skipped]))
        return ImageListing(
            replace(source, has_urls=any(map(_is_url, addresses))),
            [keys[i] for i in order],
            np.array(sizes, np.int64)[order],
            np.array(stamps, np.int64)[order],
            skipped,
            columns=columns,
            addresses=[addresses[i] for i in order],
        )

    def _take_columns(self, numbers: list[int]) -> dict[str, list[str]]:
        """Take the columns that say something of the images, of the rows that are listed."""
        left_out = dict(self._rows.left_out)
        names = []
        for name, cells in self._rows.columns.items():
            if name in (self._column, ID_TITLE, *VERSION_TITLES):
                continue
            problem = find_column_problem(name)
            if not problem and any(len(cell) > MAX_TEXT_CHARS for cell in cells):
                problem = TOO_LONG
            if problem:
                left_out[name] = problem
            else:
                names.append(name)
        taken, others = choose_columns(names)
        left_out |= dict.fromkeys(others, TOO_MANY)
        for name, reason in left_out.items():
            self._skipped.add(f"column {name}", reason)
        columns = {name: self._rows.columns[name] for name in taken}
        return {name: [cells[row] for row in numbers] for name, cells in columns.items()}

    def _resolve(self, text: str) -> tuple[str, str]:
        """Return a row's path or URL, and its address: a URL, or a name in the base's store."""
        if not text.strip():
            raise _PassedOverError(EMPTY_PATH)
        if "::" in text:
            raise _PassedOverError(CHAINED)
        if is_address(text):
            try:
                address = parse_address(text)
            except CallError as error:
                raise _PassedOverError(UNKNOWN_URL) from error
            if address.protocol != "file":
                return redact(text), text
            text = self._make_relative(address.path)
        elif text.startswith("/"):
            text = self._make_relative(text)
        name, is_http = text.removeprefix("./"), self._base.is_http
        if problem := find_key_problem(name) or (is_http and find_key_problem(unquote(name))):
            raise _PassedOverError(problem)
        encoded = quote(name, safe="/%:@!$&'()*+,;=~") if is_http else name
        return name, posixpath.join(self._base.prefix, encoded)

    def _make_relative(self, path: str) -> str:
        """Make the path of a file of this machine relative to where paths begin."""
        if not self._folder:
            raise _PassedOverError(NO_LOCAL_FILES)
        if ".." in path.split("/") or "\0" in path:
            raise _PassedOverError(LEADS_OUT)
        path = os.path.normpath(path)
        for folder in (self._folder, self._real_folder):
            below = path.removeprefix(f"{folder.rstrip('/')}/")
            if below != path:
                return below
        self._outside.append(path)
        raise _PassedOverError(OUTSIDE)

    def _skip_outside(self) -> None:
        """Say once for all which ``--root`` would take what lies outside."""
        if self._outside:
            common = os.path.commonpath([posixpath.dirname(path) for path in self._outside])
            self._skipped.rename(
                OUTSIDE,
                f"it lies outside of {to_printable(self._folder)}; "
                f"--root {shlex.quote(to_printable(common))} would take it",
            )

    def _look(self, path: str, address: str, version: str) -> tuple[int, int]:
        """Return an image's size and stamp, as far as they are known without a request."""
        if _is_url(address):
            return UNKNOWN_SIZE, make_stamp(version or path)
        if not self._folder:
            return UNKNOWN_SIZE, make_stamp(version or f"{self._base.store.root}/{address}")
        folder = posixpath.dirname(path)
        if folder not in self._is_inside:
            self._is_inside[folder] = self._holds(folder)
        if not self._is_inside[folder]:
            raise _PassedOverError(OUTSIDE_LINK)
        name = join_path(self._folder, path)
        try:
            status = os.lstat(name)
            if stat.S_ISLNK(status.st_mode):
                if not self._holds(path):
                    raise _PassedOverError(OUTSIDE_LINK)
                status = os.stat(name)  # noqa: PTH116 - a path of bytes
        except OSError:
            return 0, 0  # a row that fails
        return status.st_size, reading.stamp_of_file(status)

    def _holds(self, path: str) -> bool:
        store = self._base.store
        is_followed = isinstance(store, LocalStore) and store.follow
        try:
            return LocalStore(self._folder, is_followed).holds(Path(self._folder, path))
        except (OSError, RuntimeError):  # a link to itself
            return False
