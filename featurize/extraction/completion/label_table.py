"""Labels that came with the images, in a table beside the cache: the cache itself holds none."""

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from featurize.cache.reader import FeatureCache
from featurize.extraction.completion.changes import ListingDiff
from featurize.extraction.completion.known_images import COLUMNS_KEY
from featurize.files import atomic_write
from featurize.sources.listing import ImageListing

PATH_COLUMN = "path"


def label_table_path(cache: Path) -> Path:
    """Return the path of the labels that came with a cache's images.

    Parameters
    ----------
    cache : Path

    Returns
    -------
    Path
        ``C.h5.labels.csv``.
    """
    return cache.with_name(cache.name + ".labels.csv")


def has_expected_labels(cache: FeatureCache) -> bool:
    """Tell whether the label table is there, with a line for every image, if labels came with them.

    Parameters
    ----------
    cache : FeatureCache

    Returns
    -------
    bool
        False if containers must be opened again to find the labels.
    """
    expected = cache.source.get(COLUMNS_KEY)
    if not isinstance(expected, list) or not expected:
        return True
    try:
        columns, rows = _read_table(label_table_path(cache.path))
    except (OSError, ValueError, csv.Error):
        return False
    return set(expected) <= set(columns) and rows.keys() >= set(cache.paths)


class LabelTableUpdate:
    """Writes what a source says of its images beside the cache, if it says anything.

    A table that is there keeps its cells: somebody may have corrected them. Images and columns are
    added, and images that are gone are removed. A table in another form is left alone.

    A cell is of a content, not of a key: where the rows of a table were sorted, a key is that of
    another image now. So while contents are looked for, the table has only the rows whose image is
    unchanged, which no kill leaves wrong; then each image gets its own cells back.

    Parameters
    ----------
    path : Path
        The cache.
    listing : ImageListing
    say : callable
        Called with a sentence about what was done.
    """

    def __init__(self, path: Path, listing: ImageListing, say: Callable[[str], None]) -> None:
        self._cache_path, self._path, self._say = path, label_table_path(path), say
        self._keys = listing.paths
        self._named = {name: each for name, each in listing.columns.items() if name != PATH_COLUMN}
        self._is_wanted = bool(self._named or (listing.reused and self._path.exists()))
        self._columns: list[str] = []
        self._certain: dict[str, list[str]] = {}  # by key
        self._moved: dict[bytes, list[str] | None] = {}  # by content; None where they differ
        self._before = b""
        self._is_unfinished = False

    def begin(self, cache: FeatureCache, diff: ListingDiff) -> None:
        """Write the table as far as it is certain, before any row is looked at.

        Parameters
        ----------
        cache : FeatureCache
        diff : ListingDiff
            Of the listing and `cache`.

        Raises
        ------
        OutputError
            If the table cannot be written.
        """
        if not self._is_wanted:
            return
        if not self._path.exists():
            self._write(self._choose_cells(None))
            return
        try:
            self._before = self._path.read_bytes()
            self._columns, old_rows = _read_table(self._path)
        except (OSError, ValueError, csv.Error) as error:
            self._say(
                f"{self._path} is left as it is; it cannot be read as the table of a run: {error}"
            )
            return
        certain = set(np.asarray(self._keys, object)[diff.unchanged])
        self._certain = {key: cells for key, cells in old_rows.items() if key in certain}
        if len(certain) == len(self._keys):
            self._write(self._choose_cells(None))
            return
        for key, digest in zip(cache.paths, cache.column("sha256"), strict=True):
            cells, content = old_rows.get(key), digest.tobytes()
            if key not in certain and cells is not None and any(content):
                is_other = self._moved.get(content, cells) != cells
                self._moved[content] = None if is_other else cells
        self._is_unfinished = True
        self._write({key: self._certain.get(key) for key in self._keys})

    def finish(self) -> None:
        """Write all of the table, after rows were looked at; or after a run that was stopped.

        Raises
        ------
        OutputError
            If the table cannot be written.
        """
        if self._is_unfinished:
            self._write(self._choose_cells(FeatureCache(self._cache_path)))

    def _choose_cells(self, cache: FeatureCache | None) -> dict[str, list[str] | None]:
        """Choose the cells of every image: its own of before, or those of the source."""
        columns = list(dict.fromkeys((*self._columns, *self._named)))
        empty = [""] * len(self._keys)
        from_source = [self._named.get(name, empty) for name in columns]
        digests = None if cache is None else cache.column("sha256")
        found: dict[str, list[str] | None] = {}
        n_kept = 0
        for i, key in enumerate(self._keys):
            cells = [column[i] for column in from_source]
            old = self._certain.get(key)
            row = None if cache is None else cache.row_of.get(key)
            if old is None and digests is not None and row is not None:
                old = self._moved.get(digests[row].tobytes())
            if old is not None:
                n_kept += any(a != b for a, b in zip(old, cells, strict=False) if b)
                cells = [*old, *cells[len(old) :]]
            found[key] = cells
        self._columns = columns
        if n_kept:
            self._say(
                f"{self._path} has other labels than the images came with, in {n_kept:,} rows; "
                "they stay. Remove the file to have those of the source"
            )
        return found

    def _write(self, rows: Mapping[str, list[str] | None]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([PATH_COLUMN, *self._columns])
        writer.writerows([key, *cells] for key, cells in rows.items() if cells is not None)
        content = text.getvalue().encode("utf-8", "replace")
        if not self._path.exists() or self._path.read_bytes() != content:
            with atomic_write(self._path) as file:
                file.write(content)
        is_whole = None not in rows.values()
        if is_whole and content != self._before:
            columns = ", ".join(self._columns)
            self._say(f"{self._path}: {columns} of the images, as they came with them")


def _read_table(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Read the columns' names and the cells by key; a row of another length is an error."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if header[:1] != [PATH_COLUMN]:
            raise ValueError(f"its first column is not {PATH_COLUMN}")
        rows = {}
        for cells in reader:
            if len(cells) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(cells)} cells")
            rows[cells[0]] = cells[1:]
    return header[1:], rows
