"""Read images that are files of their own, of any store."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featurize.sources.listing import ImageListing, ImageRead
from featurize.sources.stores.store import Store


@dataclass(frozen=True)
class FileReader:
    """Reads images whose keys are names of files below a store's root.

    Parameters
    ----------
    store : Store
    listing : ImageListing
    """

    store: Store
    listing: ImageListing

    def read(self, rows: np.ndarray) -> Iterator[ImageRead]:
        """Read images; see `ImageReader.read`."""
        listing, numbers = self.listing, rows.tolist()
        names = [listing.paths[row] for row in numbers]
        stamps = [int(listing.stamps[row]) for row in numbers]
        for i, image in self.store.read_files(names, stamps):
            yield ImageRead(numbers[i], image)

    def close(self) -> None:
        """Do nothing: each file is closed when it has been read."""


def split_evenly(rows: np.ndarray, chunk_rows: int) -> list[np.ndarray]:
    """Split rows into chunks of a number of rows.

    Parameters
    ----------
    rows : int array of shape (n,)
    chunk_rows : int
        At most so many in each.

    Returns
    -------
    list of int array
    """
    return [rows[start : start + chunk_rows] for start in range(0, len(rows), chunk_rows)]
