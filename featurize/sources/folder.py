"""List the images of a folder, by their names alone."""

import errno
import heapq
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurize.errors import CallError
from featurize.sources.file_reader import FileReader, split_evenly
from featurize.sources.listing import UNKNOWN_SIZE, ImageListing, SkippedNames
from featurize.sources.patterns import GlobFilter
from featurize.sources.source import DEFAULT_OPTIONS, SourceOptions
from featurize.sources.stores.local_store import LocalStore

_FORMATS = "jpg jpeg jpe jfif png gif webp bmp dib tif tiff ppm pgm pbm pnm"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _FORMATS.split())
_SUFFIX_BYTES = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)
FOLDER = "folder"
CHUNK_FILES = 16  # read one after another

OUTSIDE_LINK = "it is a link that leads out of the folder; `--follow` takes such links too"
REPEATED_FOLDER = "it is a link to a folder that is listed already"
NOT_UTF8 = "its name is not UTF-8"


@dataclass(frozen=True)
class FolderSource:
    """The images of a folder of this machine, each a file of its own.

    Parameters
    ----------
    root : str
        The folder; it may be a link itself.
    options : SourceOptions
        Its globs, and whether links that lead out of the folder are followed.
    """

    root: str
    options: SourceOptions = DEFAULT_OPTIONS
    kind = FOLDER
    is_remote = False
    n_readers = 4

    def list_images(self, known: ImageListing | None = None) -> ImageListing:
        """List the images by their names alone; see `list_images`."""
        options = self.options
        return list_images(self.root, options.include, options.exclude, options.follow)

    def locate(self, paths: Sequence[str]) -> ImageListing:
        """List images by their keys, without looking at the folder."""
        count = len(paths)
        return ImageListing(
            self, list(paths), np.full(count, UNKNOWN_SIZE), np.zeros(count, np.int64)
        )

    def split_rows(self, listing: ImageListing, rows: np.ndarray) -> list[np.ndarray]:
        """Split rows into runs of a few files."""
        return split_evenly(rows, CHUNK_FILES)

    def open_reader(self, listing: ImageListing) -> FileReader:
        """Open a reader; see `ImageSource.open_reader`."""
        return FileReader(LocalStore(self.root), listing)

    def describe(self) -> dict[str, Any]:
        """Describe the source; see `ImageSource.describe`."""
        return {"kind": FOLDER}


def list_images(
    folder: str | os.PathLike[str],
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    follow: bool = False,
) -> ImageListing:
    """List every image below a folder, without opening any.

    Hidden files and folders are skipped. A folder with an image's suffix becomes a row too
    (which will fail), so that nothing that looks like an image disappears silently. A subfolder
    that cannot be listed is skipped and reported.

    A link is treated like its target, as long as the target lies in the folder. No folder is
    listed twice, whatever links point to it.

    Parameters
    ----------
    folder : path
        The folder; it may be a link itself.
    include, exclude : iterable of str
        Globs of the images to select, and of those to leave out (`GlobFilter`).
    follow : bool
        Whether to follow links that lead out of the folder as well.

    Returns
    -------
    ImageListing
        The images, sorted by path.

    Raises
    ------
    CallError
        If the folder is missing, cannot be read or holds no selected image, or if a glob is
        invalid.
    """
    root = Path(folder)
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise CallError(f"{root} {problem}; give the folder that holds the images")
    patterns = GlobFilter(include, exclude)
    walker = _FolderWalker(root, patterns, follow)
    walker.run()
    skipped = walker.skipped.describe()
    if not walker.images:
        raise CallError(_explain_empty(root, patterns, walker.n_excluded, skipped))
    skipped += patterns.describe_unmatched(str(root))
    walker.images.sort()
    return ImageListing(
        FolderSource(str(root), SourceOptions(patterns.include, patterns.exclude, follow)),
        [row[0] for row in walker.images],
        np.array([row[1] for row in walker.images], np.int64),
        np.array([row[2] for row in walker.images], np.int64),
        skipped,
        tuple(walker.unlisted),
        patterns.include,
        patterns.exclude,
    )


def _explain_empty(root: Path, patterns: GlobFilter, n_excluded: int, skipped: list[str]) -> str:
    if n_excluded:
        return f"none of the {n_excluded:,} images in {root} is left by --include and --exclude"
    message = f"no image in {root}; looked for {' '.join(sorted(IMAGE_SUFFIXES))}"
    return ". ".join([message, *skipped])


class _FolderWalker:
    """A walk over a folder tree with its own stack: trees may be deeper than Python recurses."""

    def __init__(self, root: Path, patterns: GlobFilter, follow: bool) -> None:
        self.root, self.patterns, self.follow = root, patterns, follow
        self._has_patterns = bool(patterns)
        self.images: list[tuple[str, int, int]] = []
        self.n_excluded = 0
        self.unlisted: list[str] = []
        self.skipped = SkippedNames()
        self._seen: set[tuple[int, int]] = set()
        self._folders: list[tuple[bytes, str]] = [(os.fsencode(root), "")]
        # Links are listed last, in order, so that a folder in the tree keeps its own path.
        self._links: list[tuple[str, bytes]] = []
        self._root_prefix = os.path.join(os.path.realpath(os.fsencode(root)), b"")  # noqa: PTH118

    def run(self) -> None:
        while self._folders or self._links:
            if self._folders:
                self._list_folder(*self._folders.pop())
            else:
                name, folder = heapq.heappop(self._links)
                self._list_folder(folder, name, by_link=True)

    def _list_folder(self, folder: bytes, name: str, by_link: bool = False) -> None:
        try:
            status = os.stat(folder)  # noqa: PTH116 - a path of bytes
            if (status.st_dev, status.st_ino) in self._seen:
                if by_link:
                    self.skipped.add(name, REPEATED_FOLDER)
                return
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith(b"."):
                        self._inspect_entry(entry, f"{name}/" if name else "")
        except OSError as error:
            problem = _describe_error(error)
            if not name:
                raise CallError(f"cannot list {self.root}: {problem}") from error
            self.skipped.add(f"{name}/", f"the folder cannot be listed: {problem}")
            self.unlisted.append(name)

    def _inspect_entry(self, entry: os.DirEntry[bytes], prefix: str) -> None:
        stem, dot, suffix = entry.name.rpartition(b".")
        is_image = bool(stem) and (dot + suffix).lower() in _SUFFIX_BYTES
        is_link, is_folder = entry.is_symlink(), entry.is_dir(follow_symlinks=False)
        if not (is_image or is_link or is_folder):
            return
        try:
            status = entry.stat() if is_image or is_link else None
        except OSError as error:  # a dangling link, a link to itself, gone already
            if error.errno == errno.ENAMETOOLONG and is_image:
                self.skipped.add(prefix + _decode_name(entry.name), _describe_error(error))
                return
            status = None
        is_folder = is_folder or (status is not None and stat.S_ISDIR(status.st_mode))
        if not (is_image or is_folder):
            return
        try:
            name = prefix + entry.name.decode()
        except UnicodeDecodeError:
            self.skipped.add(prefix + _decode_name(entry.name), NOT_UTF8)
            return
        if is_link and not self.follow and not self._is_link_inside(entry.path):
            self.skipped.add(name, OUTSIDE_LINK)
            return
        if is_folder and is_link:
            heapq.heappush(self._links, (name, entry.path))
        elif is_folder:
            self._folders.append((entry.path, name))
        if is_image:
            if self._has_patterns and not self.patterns.accepts(name):
                self.n_excluded += 1
            elif status is None:
                self.images.append((name, 0, 0))  # a row that fails
            else:
                self.images.append((name, status.st_size, status.st_mtime_ns or 1))

    def _is_link_inside(self, path: bytes) -> bool:
        return (os.path.realpath(path) + os.sep.encode()).startswith(self._root_prefix)


def _decode_name(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _describe_error(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
