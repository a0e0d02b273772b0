"""The images of one part: some containers of a source, or a slice of its listing."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np

from featurize.cache.format import compute_place_check
from featurize.cache.reader import FeatureCache
from featurize.errors import NoImagesError
from featurize.extraction.completion.known_images import is_same_source
from featurize.extraction.completion.listed_images import Globs, list_source
from featurize.sources.containers.container_source import ContainerSource
from featurize.sources.listing import Container, ImageListing, ImagePlaces
from featurize.sources.source import ImageSource
from featurize.sources.stores.store import StoredFile
from featurize.text import to_printable


class KeyRange(NamedTuple):
    """A range of keys.

    Attributes
    ----------
    first : str
        Included.
    end : str or None
        Not included; None for no end.
    """

    first: str
    end: str | None = None

    def slice(self, keys: list[str]) -> tuple[int, int]:
        """Find a range among sorted keys.

        Parameters
        ----------
        keys : list of str

        Returns
        -------
        start, stop : int
        """
        stop = len(keys) if self.end is None else bisect_left(keys, self.end)
        return bisect_left(keys, self.first), stop

    def describe(self) -> str:
        """Describe the range, to go on from "no image".

        Returns
        -------
        str
            As ``from 'a' on, and before 'c'``.
        """
        lower = f"from {self.first!r} on" if self.first else ""
        upper = f"before {self.end!r}" if self.end is not None else ""
        return ", and ".join(filter(None, (lower, upper))) or "at all"


@dataclass(frozen=True)
class Density:
    """How many images containers have, by some of them.

    Attributes
    ----------
    n_rows, n_containers, n_bytes : int
        Of those that were listed.
    """

    n_rows: int
    n_containers: int
    n_bytes: int

    @classmethod
    def of(cls, places: ImagePlaces | FeatureCache, n_rows: int) -> "Density":
        """Take it from what lists containers.

        Parameters
        ----------
        places : ImagePlaces or FeatureCache
        n_rows : int
            Images in them.

        Returns
        -------
        Density
        """
        sizes = [max(0, container.size) for container in places.containers]
        return cls(n_rows, max(1, len(sizes)), sum(sizes))

    def estimate(self, file: StoredFile) -> float:
        """Estimate how many images a container has.

        Parameters
        ----------
        file : StoredFile

        Returns
        -------
        float
        """
        if file.size >= 0 and self.n_bytes:
            return self.n_rows * file.size / self.n_bytes
        return self.n_rows / self.n_containers


class PartImages(Protocol):
    """What a source gives for parts.

    Attributes
    ----------
    source : ImageSource
    is_exact : bool
        Whether counts are exact, or about.
    """

    source: ImageSource
    is_exact: bool

    def count(self, keys: KeyRange) -> int:
        """Count the images in a range; about, unless `is_exact`."""
        ...

    def is_gone(self, keys: KeyRange) -> bool:
        """Tell whether a range has no image, as far as that is known without listing it."""
        ...

    def cut(self, keys: KeyRange, part_rows: int, last: FeatureCache | None) -> Iterator[str]:
        """Cut a range into parts.

        Parameters
        ----------
        keys : KeyRange
        part_rows : int
            About how many rows each is to have.
        last : FeatureCache, optional
            The part that exists at the beginning of the range; it is not cut.

        Yields
        ------
        str
            Where each further part begins.
        """
        ...

    def list_range(self, keys: KeyRange, cache: FeatureCache | None) -> ImageListing:
        """List the images in a range.

        Parameters
        ----------
        keys : KeyRange
        cache : FeatureCache, optional
            The part; containers that it knows, and that are unchanged, are not opened.

        Returns
        -------
        ImageListing

        Raises
        ------
        NoImagesError
            If there is none.
        CallError
            If a container cannot be understood.
        """
        ...

    def is_unchanged(self, keys: KeyRange, cache: FeatureCache) -> bool:
        """Tell whether a part is known to have the images of its range, without listing them."""
        ...


class ListedImages:
    """The images of a source that was listed whole: a folder, a bucket, a list, one container.

    Parameters
    ----------
    listing : ImageListing
    """

    is_exact = True

    def __init__(self, listing: ImageListing) -> None:
        self.source, self.listing = listing.source, listing

    def count(self, keys: KeyRange) -> int:
        """Count the images in a range."""
        start, stop = keys.slice(self.listing.paths)
        return stop - start

    def is_gone(self, keys: KeyRange) -> bool:
        """Tell whether a range has no image."""
        return not self.count(keys)

    def cut(self, keys: KeyRange, part_rows: int, last: FeatureCache | None) -> Iterator[str]:
        """Cut a range into parts of so many rows; see `PartImages.cut`."""
        paths = self.listing.paths
        start, stop = keys.slice(paths)
        position = start + part_rows
        if last is not None and last.n_rows:
            position = max(position, bisect_right(paths, _find_last_key(last)))
        while position < stop:
            yield paths[position]
            position += part_rows

    def list_range(self, keys: KeyRange, cache: FeatureCache | None) -> ImageListing:
        """Take the images in a range; see `PartImages.list_range`."""
        start, stop = keys.slice(self.listing.paths)
        if start >= stop:
            raise NoImagesError(f"{self.listing.root} has no image {keys.describe()}")
        return self.listing.slice(start, stop)

    def is_unchanged(self, keys: KeyRange, cache: FeatureCache) -> bool:
        """Return False: keys, sizes and stamps are compared one by one."""
        return False


class ContainerImages:
    """The images of several containers; only those of the part at hand are listed.

    Parameters
    ----------
    source : ContainerSource
        Of several containers.
    globs : (tuple of str, tuple of str)
        Those of the source.
    density : Density, optional
        How many images its containers have; without it one of them is listed.

    Raises
    ------
    NoImagesError
        If no container has an image.
    CallError
        If the wanted split is none of the containers' own, or one cannot be understood.
    """

    is_exact = False

    def __init__(
        self, source: ContainerSource, globs: Globs, density: Density | None = None
    ) -> None:
        self.source: ImageSource = source  # type: ignore[assignment]  # a subclass, which lists
        self._source, self._globs = source, globs
        self._files = sorted(source.select_files(), key=lambda file: f"{file.name}/")
        self._firsts = [f"{file.name}/" for file in self._files]
        self._density = density or self._list_one()
        self._n_before = [0.0, *accumulate(map(self._density.estimate, self._files))]

    def _list_one(self) -> Density:
        """List the first container that has an image."""
        problem: NoImagesError | None = None
        for file in self._files:
            try:
                listing = self._list_files([file], None)
            except NoImagesError as error:
                problem = problem or error
                continue
            if listing.places is None:
                break
            return Density.of(listing.places, len(listing.paths))
        raise problem or NoImagesError(f"no image in {to_printable(self._source.root)}")

    def _list_files(self, files: list[StoredFile], cache: FeatureCache | None) -> ImageListing:
        source: ImageSource = self._source.take_files(files)  # type: ignore[assignment]
        return list_source(source, cache, self._globs)

    def _find_files(self, keys: KeyRange) -> list[StoredFile]:
        """Find the containers that may have images in a range."""
        start, stop = self._slice(keys)
        # One that begins before the range reaches into it if its name is a folder of the first key.
        slashes = (i for i, letter in enumerate(keys.first) if letter == "/")
        above = [keys.first[: i + 1] for i in slashes]
        places = [(bisect_left(self._firsts, first, hi=start), first) for first in above]
        before = [self._files[i] for i, first in places if i < start and self._firsts[i] == first]
        return [*before, *self._files[start:stop]]

    def _slice(self, keys: KeyRange) -> tuple[int, int]:
        start, stop = keys.slice(self._firsts)
        return start, max(start, stop)

    def count(self, keys: KeyRange) -> int:
        """Estimate the images in a range by the bytes of the containers that begin there."""
        start, stop = self._slice(keys)
        return round(self._n_before[stop] - self._n_before[start])

    def is_gone(self, keys: KeyRange) -> bool:
        """Tell whether a range has no container."""
        return not self._find_files(keys)

    def cut(self, keys: KeyRange, part_rows: int, last: FeatureCache | None) -> Iterator[str]:
        """Cut a range before containers; see `PartImages.cut`."""
        after = _find_last_key(last) if last is not None and last.n_rows else ""
        n_rows, covered = 0.0, ""
        for file in self._find_files(keys):
            first, n_more = f"{file.name}/", self._density.estimate(file)
            # A container whose name goes on from that of another one stays with it.
            is_inside = bool(covered) and first.startswith(covered)
            is_full = n_rows + n_more / 2 > part_rows  # most of it would be too many
            if n_rows and is_full and first > after and not is_inside:
                yield first
                n_rows = 0.0
            n_rows += n_more
            covered = covered if is_inside else first

    def list_range(self, keys: KeyRange, cache: FeatureCache | None) -> ImageListing:
        """List the containers of a range; see `PartImages.list_range`."""
        files = self._find_files(keys)
        if not files:
            raise NoImagesError(f"{self._source.root} has no image {keys.describe()}")
        listing = self._list_files(files, cache)
        start, stop = keys.slice(listing.paths)
        if start >= stop:
            raise NoImagesError(f"{self._source.root} has no image {keys.describe()}")
        is_whole = (start, stop) == (0, len(listing.paths))
        return listing if is_whole else listing.slice(start, stop)

    def is_unchanged(self, keys: KeyRange, cache: FeatureCache) -> bool:
        """Tell whether the containers of a range are those of a part, and unchanged."""
        files = [Container(*file) for file in self._find_files(keys)]
        known = [Container(c.name, c.size, c.stamp) for c in cache.containers]
        if set(files) != set(known) or not all(file.stamp for file in files):
            return False
        has_same_globs = self._globs == (tuple(cache.include), tuple(cache.exclude))
        if not has_same_globs or not is_same_source(cache, self.source):
            return False
        stamps, offsets = cache.column("mtime_ns"), cache.column("offset")
        container_of = cache.column("container")
        if not stamps.all() or not np.isin(container_of, np.arange(len(known))).all():
            return False
        places = ImagePlaces(known, container_of, offsets)
        return all(
            compute_place_check(stamps[rows], offsets[rows]) == record.check
            for record, rows in zip(cache.containers, places.group_rows(), strict=True)
        )


def _find_last_key(cache: FeatureCache) -> str:
    """Find the last key of a part, without decoding the others."""
    return bytes(cache.column("path")[-1]).decode()


def open_part_images(
    source: ImageSource, globs: Globs, known: FeatureCache | None
) -> ListedImages | ContainerImages:
    """List a source whole, or look at its containers.

    Parameters
    ----------
    source : ImageSource
    globs : (tuple of str, tuple of str)
        Those of the source.
    known : FeatureCache, optional
        A part that exists; its containers tell how many images others may have.

    Returns
    -------
    ListedImages or ContainerImages

    Raises
    ------
    CallError
        If there is no image.
    """
    if isinstance(source, ContainerSource) and not source.is_single:
        has_density = known is not None and known.n_rows and known.containers
        density = Density.of(known, known.n_rows) if known is not None and has_density else None
        return ContainerImages(source, globs, density)
    return ListedImages(list_source(source, None, globs))
