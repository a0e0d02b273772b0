"""Which images a folder holds: found by name, without opening any."""

import errno
import heapq
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurize.errors import CallError
from featurize.sources.patterns import GlobFilter
from featurize.text import to_printable

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "bmp", "dib", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm"),
    )
)
_SUFFIX_BYTES = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)
MAX_NAMED = 3  # of what is passed over for one reason; the others are counted

OUTSIDE_LINK = "it is a link that leads out of the folder; `--follow` takes such links too"
REPEATED_FOLDER = "it is a link to a folder that is listed already"
NOT_UTF8 = "its name is not UTF-8"


@dataclass(frozen=True)
class ImageListing:
    """The images of one folder, sorted by path.

    Attributes
    ----------
    root : Path
        The folder.
    paths : list of str
        POSIX paths relative to `root`, sorted.
    sizes, mtimes_ns : int64 arrays of shape (N,)
        File sizes in bytes and modification times in nanoseconds.
    passed_over : list of str
        Sentences: what cannot be a row, and why.
    unlisted : tuple of str
        Folders, relative to `root`, that could not be listed, or not to the end. Nothing is known
        of the images in them.
    include, exclude : tuple of str
        The globs by which images were taken (`GlobFilter`).
    follow : bool
        Whether links that lead out of the folder were followed.
    """

    root: Path
    paths: list[str]
    sizes: np.ndarray
    mtimes_ns: np.ndarray
    skipped: list[str]
    unlisted: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow: bool = False

    def full_path(self, row: int) -> bytes:
        """Where a row's image lies."""
        return join_path(self.root, self.paths[row])


def list_images(
    folder: str | os.PathLike[str],
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    follow: bool = False,
) -> ImageListing:
    """List every image below a folder, without opening any.

    Hidden files and folders are passed over. A folder with an image's suffix becomes a row too
    (which will fail), so that nothing that looks like an image disappears silently. What cannot
    be listed costs itself alone, and is said.

    A link counts like what it leads to, as long as that lies in the folder. No folder is listed
    twice, whatever leads to it.

    Parameters
    ----------
    folder : path
        May be a link itself.
    include, exclude : iterable of str
        Globs: images that count, of all or of those included those that do not (`GlobFilter`).
    follow : bool
        Follow links that lead out of the folder as well.

    Raises
    ------
    CallError
        If the folder is missing, cannot be read or holds no image that counts, or a glob is none.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise CallError(f"{root} {what}; give the folder that holds the images")
    patterns = GlobFilter(include, exclude)
    walk = _FolderWalker(root, patterns, follow)
    walk.run()
    passed_over = walk.describe_skipped()
    if not walk.images:
        raise CallError(_explain_empty(root, patterns, walk.n_excluded, passed_over))
    for pattern in (*patterns.include, *patterns.exclude):
        if pattern not in patterns.matched:
            passed_over.append(f"the pattern {to_printable(pattern)!r} matches no image in {root}")
    walk.images.sort()
    return ImageListing(
        root,
        [row[0] for row in walk.images],
        np.array([row[1] for row in walk.images], np.int64),
        np.array([row[2] for row in walk.images], np.int64),
        passed_over,
        tuple(walk.unlisted),
        patterns.include,
        patterns.exclude,
        follow,
    )


def join_path(root: str | os.PathLike[str], path: str) -> bytes:
    """Where an image lies: its path below the folder is UTF-8, whatever the locale says."""
    return os.path.join(os.fsencode(root), path.encode())


def _explain_empty(root: Path, patterns: GlobFilter, n_excluded: int, skipped: list[str]) -> str:
    if n_excluded:
        return f"none of the {n_excluded:,} images in {root} is left by --include and --exclude"
    looked = f"no image in {root}; looked for {' '.join(sorted(IMAGE_SUFFIXES))}"
    return ". ".join([looked, *skipped])


class _FolderWalker:
    """One pass over a tree, with a stack: a tree may be deeper than Python's own."""

    def __init__(self, root: Path, patterns: GlobFilter, follow: bool) -> None:
        self.root, self.patterns, self.follow = root, patterns, follow
        self._has_patterns = bool(patterns)
        self.images: list[tuple[str, int, int]] = []
        self.n_excluded = 0
        self.unlisted: list[str] = []
        self._skipped: dict[str, list[str]] = {}  # by reason
        self._seen: set[tuple[int, int]] = set()
        self._folders: list[tuple[bytes, str]] = [(os.fsencode(root), "")]
        # They come last, in order, so that a folder is listed by its own name where it has one.
        self._links: list[tuple[str, bytes]] = []
        self._root_prefix = os.path.join(os.path.realpath(os.fsencode(root)), b"")

    def run(self) -> None:
        while self._folders or self._links:
            if self._folders:
                self._list_folder(*self._folders.pop())
            else:
                name, folder = heapq.heappop(self._links)
                self._list_folder(folder, name, by_link=True)

    def describe_skipped(self) -> list[str]:
        """What was passed over, a bounded number of lines."""
        found = []
        for reason, names in self._skipped.items():
            names.sort()
            found += [f"passed over {to_printable(name)}: {reason}" for name in names[:MAX_NAMED]]
            if len(names) > MAX_NAMED:
                found.append(f"passed over {len(names) - MAX_NAMED:,} more for that reason")
        return found

    def _list_folder(self, folder: bytes, name: str, by_link: bool = False) -> None:
        try:
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in self._seen:
                if by_link:
                    self._skip(name, REPEATED_FOLDER)
                return
            self._seen.add((here.st_dev, here.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith(b"."):
                        self._inspect_entry(entry, f"{name}/" if name else "")
        except OSError as error:
            what = _describe_error(error)
            if not name:
                raise CallError(f"cannot list {self.root}: {what}") from error
            self._skip(f"{name}/", f"the folder cannot be listed: {what}")
            self.unlisted.append(name)

    def _inspect_entry(self, entry: os.DirEntry[bytes], prefix: str) -> None:
        stem, dot, suffix = entry.name.rpartition(b".")
        is_image = bool(stem) and (dot + suffix).lower() in _SUFFIX_BYTES
        is_link, is_folder = entry.is_symlink(), entry.is_dir(follow_symlinks=False)
        if not (is_image or is_link or is_folder):
            return
        try:
            info = entry.stat() if is_image or is_link else None
        except OSError as error:  # a dangling link, a link to itself, gone already
            if error.errno == errno.ENAMETOOLONG and is_image:
                self._skip(prefix + _decode_name(entry.name), _describe_error(error))
                return
            info = None
        is_folder = is_folder or (info is not None and stat.S_ISDIR(info.st_mode))
        if not (is_image or is_folder):
            return
        try:
            name = prefix + entry.name.decode()
        except UnicodeDecodeError:
            self._skip(prefix + _decode_name(entry.name), NOT_UTF8)
            return
        if is_link and not self.follow and not self._is_link_inside(entry.path):
            self._skip(name, OUTSIDE_LINK)
            return
        if is_folder and is_link:
            heapq.heappush(self._links, (name, entry.path))
        elif is_folder:
            self._folders.append((entry.path, name))
        if is_image:
            if self._has_patterns and not self.patterns.accepts(name):
                self.n_excluded += 1
            elif info is None:
                self.images.append((name, 0, 0))  # a row that fails
            else:
                self.images.append((name, info.st_size, info.st_mtime_ns))

    def _is_link_inside(self, path: bytes) -> bool:
        return (os.path.realpath(path) + os.sep.encode()).startswith(self._root_prefix)

    def _skip(self, name: str, reason: str) -> None:
        self._skipped.setdefault(reason, []).append(name)


def _decode_name(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _describe_error(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
