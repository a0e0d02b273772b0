"""What readers of archives share: one archive is open at a time, and an error costs its rows."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from featurize.errors import ImageUnreadableError
from featurize.images import reading
from featurize.images.reasons import EMPTY, TOO_LARGE
from featurize.sources.containers.container_source import ContainerSource
from featurize.sources.listing import Container, ImageListing, ImagePlaces, ImageRead


class ArchiveReader(ABC):
    """Base of the readers of archives; see `ImageReader`.

    Parameters
    ----------
    source : ContainerSource
    listing : ImageListing
        Of this source, with places.
    """

    def __init__(self, source: ContainerSource, listing: ImageListing) -> None:
        self.source, self.listing = source, listing
        nowhere = ImagePlaces([], np.zeros(0, np.int32), np.zeros(0, np.int64))
        self.places = listing.places or nowhere
        self._opened = -1  # index of a container

    def read(self, rows: np.ndarray) -> Iterator[ImageRead]:
        """Read images; see `ImageReader.read`."""
        containers, offsets = self.places.container_of[rows], self.places.offsets[rows]
        order = np.lexsort((offsets, containers))
        rows, containers = rows[order], containers[order]
        for part in np.split(rows, np.flatnonzero(np.diff(containers)) + 1):
            if not len(part):
                continue
            readable = []
            for row in part.tolist():
                if (error := self._find_size_problem(row)) is None:
                    readable.append(row)
                else:
                    yield ImageRead(row, error)
            index = int(self.places.container_of[part[0]])
            try:
                if index != self._opened:
                    self.close()
                    self.open_container(self.places.containers[index])
                    self._opened = index
            except ImageUnreadableError as error:
                yield from (ImageRead(row, error) for row in readable)
            else:
                yield from self.read_rows(self.places.containers[index], readable)

    def close(self) -> None:
        """Close what is open."""
        self._opened = -1
        self.close_container()

    @abstractmethod
    def open_container(self, container: Container) -> None:
        """Open a container; nothing else is open.

        Parameters
        ----------
        container : Container

        Raises
        ------
        ImageUnreadableError
            If it cannot be opened.
        """

    @abstractmethod
    def read_rows(self, container: Container, rows: list[int]) -> Iterator[ImageRead]:
        """Read images of the open container.

        Parameters
        ----------
        container : Container
        rows : list of int
            In the order in which they lie there.

        Yields
        ------
        ImageRead
            One per row; no error is raised.
        """

    @abstractmethod
    def close_container(self) -> None:
        """Close the container, if one is open."""

    def find_name(self, container: Container, row: int) -> str:
        """Find the name of an image in its container.

        Parameters
        ----------
        container : Container
        row : int

        Returns
        -------
        str
        """
        path = self.listing.paths[row]
        return path if self.source.is_single else path[len(container.name) + 1 :]

    def _find_size_problem(self, row: int) -> ImageUnreadableError | None:
        size, path = int(self.listing.sizes[row]), self.listing.paths[row]
        if size > reading.MAX_FILE_BYTES:
            return ImageUnreadableError(f"{path} has {size:,} bytes", TOO_LARGE)
        return None if size else ImageUnreadableError(f"{path} is empty", EMPTY)
