"""What all sources of containers share: which files they are, and how their images are keyed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from featurize.sources.listing import Container, ImageListing
from featurize.sources.source import DEFAULT_OPTIONS, SourceOptions
from featurize.sources.stores.store import Store, StoredFile

MAX_CHUNK_ROWS = 256
MAX_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class ContainerSource:
    """Base of the sources whose images lie in containers.

    Parameters
    ----------
    store : Store
        Where the containers lie.
    files : tuple of StoredFile
        The containers, as they were found when the source was opened.
    is_single : bool
        Whether one container was given by its name. Its images' keys are the names in it; else the
        container's name comes before, so that a further container changes no key.
    options : SourceOptions
    all_names : tuple of str, optional
        Names of all containers, where `files` are some of them: what a name says of a split
        depends on the others.
    """

    store: Store
    files: tuple[StoredFile, ...]
    is_single: bool = False
    options: SourceOptions = DEFAULT_OPTIONS
    all_names: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of all containers of the source, in any order."""
        return list(self.all_names) or [file.name for file in self.files]

    def select_files(self) -> list[StoredFile]:
        """Select the containers that may have images of the wanted split, by their names.

        Returns
        -------
        list of StoredFile

        Raises
        ------
        CallError
            If the names say splits, and that is none of them.
        """
        return list(self.files)

    def take_files(self, files: Iterable[StoredFile]) -> Self:
        """Return the source of some of its containers: keys and splits stay as they are.

        Parameters
        ----------
        files : iterable of StoredFile
            Of `files`.

        Returns
        -------
        ContainerSource
            Of the same class.
        """
        return replace(self, files=tuple(files), all_names=tuple(self.names))

    @property
    def root(self) -> str:
        """Where the containers are; the container itself if there is one."""
        root = self.store.root
        return f"{root.rstrip('/')}/{self.files[0].name}" if self.is_single else root

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""
        return self.store.is_remote

    @property
    def n_readers(self) -> int:
        """How many readers keep it busy."""
        return 8 if self.is_remote else 2

    def make_key(self, container: str, member: str) -> str:
        """Make the key of an image.

        Parameters
        ----------
        container, member : str
            Names of the container and of the image in it.

        Returns
        -------
        str
        """
        return member if self.is_single else f"{container}/{member}"

    def list_unchanged(
        self, known: ImageListing | None
    ) -> Iterator[tuple[StoredFile, np.ndarray | None]]:
        """Tell which containers are as they were in an earlier listing.

        Parameters
        ----------
        known : ImageListing, optional

        Yields
        ------
        file : StoredFile
            Each container that may have wanted images, by name.
        rows : int array, optional
            Its rows in `known`; None if it must be opened.
        """
        places = None if known is None else known.places
        rows_of = {}
        if places is not None:
            rows_of = dict(zip(places.containers, places.group_rows(), strict=True))
        for file in sorted(self.select_files(), key=lambda file: file.name):
            yield file, rows_of.get(Container(*file)) if file.stamp else None

    def split_rows(self, listing: ImageListing, rows: np.ndarray) -> list[np.ndarray]:
        """Split rows into runs of one container that follow each other in it.

        Parameters
        ----------
        listing : ImageListing
        rows : int array of shape (n,)

        Returns
        -------
        list of int array
            Each of at most `MAX_CHUNK_ROWS` rows and `MAX_CHUNK_BYTES`, but for a larger image.
        """
        if listing.places is None or not len(rows):
            return []
        container_of, offsets = listing.places.container_of[rows], listing.places.offsets[rows]
        rows = rows[np.lexsort((offsets, container_of))]
        container_of = listing.places.container_of[rows]
        sizes = np.maximum(listing.sizes[rows], 0)
        chunks, start, size = [], 0, 0
        for i in range(len(rows)):
            size += int(sizes[i])
            is_full = i - start >= MAX_CHUNK_ROWS or size > MAX_CHUNK_BYTES
            if i > start and (is_full or container_of[i] != container_of[start]):
                chunks.append(rows[start:i])
                start, size = i, int(sizes[i])
        return [*chunks, rows[start:]]
