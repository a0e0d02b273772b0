"""Listings of images: their keys, versions and places, without opening any."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featurize.errors import ImageUnreadableError, UnknownPathError
from featurize.images.reading import ImageFile
from featurize.text import list_first, to_printable

if TYPE_CHECKING:
    from featurize.sources.source import ImageSource

MAX_KEY_BYTES = 512  # every row of a cache is as wide as its longest key
MAX_NAMED = 3  # paths named per reason for skipping; the others are counted
UNKNOWN_SIZE = -1


class ImageRead(NamedTuple):
    """One image of a stream: an error is a value, so that it costs one row.

    Attributes
    ----------
    row : int
        Row of the listing.
    image : ImageFile or ImageUnreadableError
        Its bytes, or why there are none.
    """

    row: int
    image: ImageFile | ImageUnreadableError


@dataclass(frozen=True)
class Container:
    """A file that holds many images: a shard, an archive, a table.

    Attributes
    ----------
    name : str
        Path below the source's root.
    size : int
        In bytes.
    stamp : int
        Version stamp: another one where the content may be another. 0 proves nothing.
    """

    name: str
    size: int
    stamp: int


@dataclass(frozen=True)
class ImagePlaces:
    """Where in which container each image lies.

    Attributes
    ----------
    containers : list of Container
        In the order of their names.
    container_of : int32 array of shape (N,)
        Index of each image's container.
    offsets : int64 array of shape (N,)
        Place in the container: a byte of an archive, a row of a table.
    """

    containers: list[Container]
    container_of: np.ndarray
    offsets: np.ndarray

    def group_rows(self) -> list[np.ndarray]:
        """Group the images by their container.

        Returns
        -------
        list of int array
            Rows of each container, ascending.
        """
        order = np.argsort(self.container_of, kind="stable")
        ends = np.searchsorted(self.container_of[order], np.arange(1, len(self.containers)))
        return np.split(order, ends) if self.containers else []


@dataclass(frozen=True)
class ImageListing:
    """The images of a source, sorted by key.

    Attributes
    ----------
    source : ImageSource
        Where the listing comes from, and who reads its images.
    paths : list of str
        Keys: unique, sorted, relative, POSIX, without ``..``.
    sizes : int64 array of shape (N,)
        In bytes; `UNKNOWN_SIZE` where only reading tells.
    stamps : int64 array of shape (N,)
        Version stamps: an image with the same size and stamp is unchanged. 0 proves nothing.
        Those of files are modification times in nanoseconds.
    skipped : list of str
        Sentences: what was skipped, and why.
    unlisted : tuple of str
        Folders and containers, relative to the root, that could not be listed completely. The
        images in them are unknown.
    include, exclude : tuple of str
        The globs by which images were selected (`featurize.sources.patterns.GlobFilter`).
    places : ImagePlaces, optional
        None where each image is a file of its own.
    columns : dict of str to list of str
        What the source says of each image, by name: ``label``, ``split``, ``group`` and others.
        Empty text where it says nothing.
    addresses : list of str, optional
        What is read of each image, where that is not its key: it may have secrets.
    has_row_numbers : bool
        Whether keys are numbers of rows, so that another content may come under an old key.
    reused : tuple of str
        Names of containers that were known and not opened: `columns` has empty text for their
        images.
    """

    source: "ImageSource"
    paths: list[str]
    sizes: np.ndarray
    stamps: np.ndarray
    skipped: list[str] = field(default_factory=list)
    unlisted: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    places: ImagePlaces | None = None
    columns: dict[str, list[str]] = field(default_factory=dict)
    addresses: list[str] | None = field(default=None, repr=False)
    has_row_numbers: bool = False
    reused: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """Where the images are; see `ImageSource`."""
        return self.source.root

    def select(self, paths: Sequence[str]) -> "ImageListing":
        """Return the listing of some images, in the order given.

        Parameters
        ----------
        paths : sequence of str
            n keys.

        Returns
        -------
        ImageListing
            Of n images, not sorted unless `paths` is.

        Raises
        ------
        UnknownPathError
            If a key is not listed; the message lists the first three.
        """
        row_of = {path: row for row, path in enumerate(self.paths)}
        unknown = [path for path in paths if path not in row_of]
        if unknown:
            raise UnknownPathError(
                f"{len(unknown):,} of {len(paths):,} images are not in {self.root}: "
                f"{list_first(unknown)}; its images look like {self.paths[0]!r}"
            )
        rows = np.array([row_of[path] for path in paths], np.intp)
        places = self.places
        return replace(
            self,
            paths=list(paths),
            sizes=self.sizes[rows],
            stamps=self.stamps[rows],
            places=None
            if places is None
            else replace(
                places, container_of=places.container_of[rows], offsets=places.offsets[rows]
            ),
            addresses=None
            if self.addresses is None
            else [self.addresses[row] for row in rows.tolist()],
            columns={
                name: [values[row] for row in rows.tolist()]
                for name, values in self.columns.items()
            },
        )

    def slice(self, start: int, stop: int) -> "ImageListing":
        """Return the listing of the images from one row to before another.

        Parameters
        ----------
        start, stop : int
            Rows, as of a slice.

        Returns
        -------
        ImageListing
            What was skipped is not told again.
        """
        rows, places, addresses = slice(start, stop), self.places, self.addresses
        return replace(
            self,
            paths=self.paths[rows],
            sizes=self.sizes[rows],
            stamps=self.stamps[rows],
            skipped=[],
            places=None
            if places is None
            else replace(
                places, container_of=places.container_of[rows], offsets=places.offsets[rows]
            ),
            columns={name: values[rows] for name, values in self.columns.items()},
            addresses=None if addresses is None else addresses[rows],
        )


class SkippedNames:
    """What a listing leaves out, by reason, told in a bounded number of sentences."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, name: str, reason: str) -> None:
        """Note a name that is left out.

        Parameters
        ----------
        name, reason : str
        """
        self._names.setdefault(reason, []).append(name)

    def rename(self, reason: str, better: str) -> None:
        """Replace a reason by one that is known only at the end.

        Parameters
        ----------
        reason, better : str
        """
        self._names[better] = self._names.pop(reason)

    def describe(self) -> list[str]:
        """Describe what was left out.

        Returns
        -------
        list of str
            At most `MAX_NAMED` names for each reason, then their number.
        """
        sentences = []
        for reason, names in self._names.items():
            names.sort()
            sentences += [
                f"passed over {to_printable(name)}: {reason}" for name in names[:MAX_NAMED]
            ]
            if len(names) > MAX_NAMED:
                sentences.append(f"passed over {len(names) - MAX_NAMED:,} more for that reason")
        return sentences


def make_stamp(*parts: object) -> int:
    """Make a version stamp of anything that changes with the content.

    Parameters
    ----------
    *parts : object
        Text and numbers.

    Returns
    -------
    int
        63 bits, never 0.
    """
    digest = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1 or 1


def make_key(text: str) -> str:
    """Make the key of a path or URL: no part of a key is empty, as that between ``//`` would be.

    Parameters
    ----------
    text : str

    Returns
    -------
    str
        ``https:/host/a.jpg`` of ``https://host/a.jpg``; a path as it is.
    """
    return text.replace("://", ":/", 1)


def find_key_problem(key: str) -> str:
    """Say why a text cannot be the key of an image.

    Parameters
    ----------
    key : str

    Returns
    -------
    str
        Empty if it can.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if size > MAX_KEY_BYTES:
        return f"its name has {size:,} bytes, more than {MAX_KEY_BYTES}"
    if key.startswith("/") or {"", ".", ".."} & set(key.split("/")) or "\0" in key:
        return "its name leads out of the source, or is none"
    return ""


def read_images(listing: ImageListing, rows: Iterable[int]) -> Iterator[ImageRead]:
    """Read some images of a listing, in this thread.

    Parameters
    ----------
    listing : ImageListing
    rows : iterable of int
        Ascending.

    Yields
    ------
    ImageRead
    """
    reader = listing.source.open_reader(listing)
    try:
        for chunk in listing.source.split_rows(listing, np.fromiter(rows, np.int64)):
            yield from reader.read(chunk)
    finally:
        reader.close()
