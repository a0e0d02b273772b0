"""Rows of a cache by key: the path of each row's image."""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from featurize.cache import integrity
from featurize.errors import UnknownPathError
from featurize.text import list_first

FEW_PATHS = 8  # searching one path in so many takes less than a dictionary of all of them


class KeyedRows(ABC):
    """Rows that are sorted by the paths of their images.

    Attributes
    ----------
    path : Path
        Where the rows are, for messages.
    root : str
        Where the images are, for messages.
    n_rows : int
    """

    path: Path
    root: str
    n_rows: int

    @abstractmethod
    def column(self, name: str, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Read a column, see `featurize.cache.reader.FeatureCache.column`."""

    @cached_property
    def paths(self) -> list[str]:
        """Path of every row's image, relative to the folder, sorted: the row key.

        Raises
        ------
        CacheFormatError
            If a path is absolute, leads out of the folder, is repeated or out of order.
        """
        return integrity.decode_paths(self.column("path"), self.path, is_whole=True)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row number by path."""
        return {path: row for row, path in enumerate(self.paths)}

    def paths_of(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Read the paths of some rows, and no others.

        Parameters
        ----------
        rows : int array of shape (n,)
            Row numbers.

        Returns
        -------
        list of str
            In the order of `rows`.

        Raises
        ------
        CacheFormatError
            If one of them is absolute or leads out of the folder.
        """
        return integrity.decode_paths(self.column("path", rows), self.path)

    def find_rows(self, paths: Sequence[str]) -> np.ndarray:
        """Look up the rows of images, where there are any.

        Keys are searched where they lie; `paths` and `row_of` are not made for it.

        Parameters
        ----------
        paths : sequence of str
            n paths, written as in `paths`, in any order.

        Returns
        -------
        intp array of shape (n,)
            Row numbers, marked or not; -1 for images that are not in the cache.

        Raises
        ------
        CacheFormatError
            If keys that were read are out of order.
        """
        decoded = self.__dict__.get("paths")  # as far as somebody has asked for all of them
        if decoded is not None and len(paths) == len(decoded) and list(paths) == decoded:
            return np.arange(len(decoded))
        if "row_of" in self.__dict__ or (
            decoded is not None and FEW_PATHS * len(paths) > len(decoded)
        ):
            row_of = self.row_of
            return np.array([row_of.get(path, -1) for path in paths], np.intp)
        if decoded is not None:
            return np.array([_bisect(decoded, path) for path in paths], np.intp)
        return self._search(paths)

    @abstractmethod
    def _search(self, paths: Sequence[str]) -> np.ndarray:
        """Look up rows without `paths` and `row_of`."""

    def rows_for(self, paths: Sequence[str]) -> np.ndarray:
        """Look up the rows of images, marked or not.

        Parameters
        ----------
        paths : sequence of str
            n paths, written as in `paths`, in any order.

        Returns
        -------
        intp array of shape (n,)
            Row numbers, in the order of `paths`.

        Raises
        ------
        UnknownPathError
            If any is not in the cache; the message lists the first three.
        """
        rows = self.find_rows(paths)
        unknown = [paths[i] for i in np.flatnonzero(rows < 0).tolist()]
        if unknown:
            raise UnknownPathError(
                f"{len(unknown):,} of {len(paths):,} images are not in {self.path}: "
                f"{list_first(unknown)}; its paths look like {self.paths_of([0])[0]!r}, below "
                f"{self.root}"
            )
        return rows


def _bisect(paths: list[str], path: object) -> int:
    row = bisect_left(paths, path) if isinstance(path, str) else len(paths)
    return row if row < len(paths) and paths[row] == path else -1
