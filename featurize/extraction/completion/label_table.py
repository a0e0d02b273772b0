"""Labels that came with the images, in a table beside the cache: the cache itself holds none.

The table may be corrected by hand. So what the source said is kept beside it: a cell that differs
from that was corrected, and any other one follows the source. A correction is of a content, not
of a key: where the rows of a table were sorted, a key is that of another image now.
"""

import csv
import filecmp
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featurize.cache.reader import FeatureCache
from featurize.extraction.completion.changes import ListingDiff
from featurize.extraction.completion.known_images import COLUMNS_KEY
from featurize.extraction.completion.label_cells import PATH_COLUMN, LabelCells
from featurize.files import atomic_write
from featurize.sources.listing import ImageListing
from featurize.text import format_count


class _Line(NamedTuple):
    """The cells of one image before the run: as they stood, and as the source had told them."""

    present: list[str]
    told: list[str]


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


def told_table_path(cache: Path) -> Path:
    """Return the path of what the source said of the images, whatever was corrected since.

    Parameters
    ----------
    cache : Path

    Returns
    -------
    Path
        ``C.h5.labels.source``.
    """
    return cache.with_name(cache.name + ".labels.source")


def has_label_files(cache: FeatureCache) -> bool:
    """Tell whether the files are there in which the labels of a cache stand, if it has any.

    Parameters
    ----------
    cache : FeatureCache

    Returns
    -------
    bool
        What is in them is not looked at.
    """
    paths = label_table_path(cache.path), told_table_path(cache.path)
    return not cache.source.get(COLUMNS_KEY) or all(path.exists() for path in paths)


def remove_label_files(cache: Path) -> None:
    """Remove the labels of a cache that goes; a table that was corrected is kept as ``.old``.

    Parameters
    ----------
    cache : Path
    """
    path, told_path = label_table_path(cache), told_table_path(cache)
    with suppress(OSError):
        if path.exists() and (
            not told_path.exists() or not filecmp.cmp(path, told_path, shallow=False)
        ):
            path.replace(path.with_name(path.name + ".old"))
        path.unlink(missing_ok=True)
        told_path.unlink(missing_ok=True)


def has_expected_labels(cache: FeatureCache) -> bool:
    """Tell whether it is known what the source said of every image, if it said anything.

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
        told = LabelCells.read(told_table_path(cache.path))
    except (OSError, ValueError, csv.Error):
        return False
    return set(expected) <= set(told.columns) and told.rows.keys() >= set(cache.paths)


class LabelTableUpdate:
    """Writes what a source says of its images beside the cache, if it says anything.

    Corrected cells stay, as long as the source says of that image what it said before; columns
    that were added stay too. All other cells are the source's. Where corrections go, the table as
    it was is kept as ``C.h5.labels.csv.old``. A table in another form is left alone.

    While images are looked at, the table has the rows alone whose image is unchanged: a kill leaves
    lines missing, and none that is another image's.

    Parameters
    ----------
    path : Path
        The cache.
    listing : ImageListing
    say : callable
        Called with a sentence about what was done.
    """

    def __init__(self, path: Path, listing: ImageListing, say: Callable[[str], None]) -> None:
        self._cache_path, self._listing, self._say = path, listing, say
        self._path, self._told_path = label_table_path(path), told_table_path(path)
        self._old_path = self._path.with_name(self._path.name + ".old")
        self._named = {name: text for name, text in listing.columns.items() if name != PATH_COLUMN}
        self._before, self._present = LabelCells(), LabelCells()
        self._columns: list[str] = []  # of lines: those that the source or the table has or had
        self._certain: dict[str, _Line] = {}  # by key
        self._moved: dict[bytes, _Line | None] = {}  # by content; None where lines differ
        self._content = b""
        self._made_old = self._is_unfinished = False

    def begin(self, cache: FeatureCache, diff: ListingDiff, is_new: bool) -> None:
        """Write the table as far as it is certain, before any row is looked at.

        Parameters
        ----------
        cache : FeatureCache
        diff : ListingDiff
            Of the listing and `cache`.
        is_new : bool
            Whether the cache was made by this run: a table that is there is of another one.

        Raises
        ------
        OutputError
            If the table cannot be written.
        """
        with suppress(OSError, ValueError, csv.Error):
            self._before = LabelCells.read(self._told_path)
        if not self._named and not self._before.columns:
            return
        try:
            self._present = LabelCells.read(self._path)
            self._content = self._path.read_bytes()
        except FileNotFoundError:
            pass
        except (OSError, ValueError, csv.Error) as error:
            self._say(
                f"{self._path} is left as it is; it cannot be read as the table of a run: {error}"
            )
            return
        self._is_unfinished = True
        told = [*self._before.columns, *self._named]
        self._columns = list(dict.fromkeys((*told, *self._present.columns)))
        if is_new:
            self._before = LabelCells()
        certain = set(np.asarray(self._listing.paths, object)[diff.unchanged].tolist())
        self._sort_lines(cache, certain)
        if len(certain) == len(self._listing.paths):
            self.finish()
            return
        corrected = [line for line in self._moved.values() if line and line.present != line.told]
        if corrected:
            self._keep_old()
        self._present.select(certain).write(self._path)
        self._before.select(certain).write(self._told_path)

    def finish(self) -> None:
        """Write all of the table, after every row was looked at.

        Raises
        ------
        OutputError
            If the table cannot be written.
        """
        if not self._is_unfinished:
            return
        self._is_unfinished = False
        told = self._find_told()
        added = [name for name in self._present.columns if name not in self._before.columns]
        columns = list(dict.fromkeys((*told.columns, *added)))
        n_columns, order = len(columns), [*columns, *self._columns]
        order = list(dict.fromkeys(order))
        cache = FeatureCache(self._cache_path)
        digests, row_of = cache.column("sha256"), cache.row_of
        table, n_kept, n_lost = LabelCells(columns), 0, 0
        used: set[int] = set()
        for key in self._listing.paths:
            line = self._certain.get(key) or self._moved.get(digests[row_of[key]].tobytes())
            cells = list(told.find(key, order) or [""] * len(order))
            if line is not None:
                used.add(id(line))
                kept, lost = _keep_corrections(cells, self._reorder(line, order))
                n_kept, n_lost = n_kept + kept, n_lost + lost
            table.rows[key] = cells[:n_columns]
        lines = (*self._certain.values(), *self._moved.values())
        n_lost += sum(
            line.present != line.told for line in lines if line is not None and id(line) not in used
        )
        self._conclude(table, told, n_kept, n_lost)

    def stop(self) -> None:
        """After a run that was stopped, write the lines of the images that the cache has now.

        Raises
        ------
        OutputError
            If the table cannot be written.
        """
        if not self._is_unfinished:
            return
        self._is_unfinished = False
        cache = FeatureCache(self._cache_path)
        present, told = LabelCells(self._columns), LabelCells(self._columns)
        for key, digest in zip(cache.paths, cache.column("sha256"), strict=True):
            line = self._certain.get(key) or self._moved.pop(digest.tobytes(), None)
            if line is not None:
                present.rows[key], told.rows[key] = line
        present.write(self._path)
        told.write(self._told_path)
        if self._made_old and not any(
            line.present != line.told for line in self._moved.values() if line is not None
        ):
            self._old_path.unlink(missing_ok=True)

    def _sort_lines(self, cache: FeatureCache, certain: set[str]) -> None:
        """Put each line of the table as it was to its key, or else to its content."""
        empty = [""] * len(self._columns)
        digests = cache.column("sha256")
        for key in self._present.rows:
            told = self._before.find(key, self._columns) or empty
            line = _Line(self._present.find(key, self._columns) or empty, told)
            row = cache.row_of.get(key)
            content = key.encode() if row is None else digests[row].tobytes()
            if key in certain:
                self._certain[key] = line
            elif self._moved.setdefault(content, line) != line:
                self._moved[content] = None

    def _find_told(self) -> LabelCells:
        """Find what the source says now; of containers that were not opened, what it said before.

        Without anything that it says, no table is left.
        """
        listing, before = self._listing, self._before
        columns = [*self._named]
        if listing.reused:
            columns = list(dict.fromkeys((*before.columns, *self._named)))
        empty = [""] * len(listing.paths)
        texts = [self._named.get(name, empty) for name in columns]
        is_opened = _find_opened_rows(listing)
        told = LabelCells(columns)
        for row, key in enumerate(listing.paths):
            known = None if is_opened[row] else before.find(key, columns)
            told.rows[key] = [text[row] for text in texts] if known is None else known
        return told

    def _reorder(self, line: _Line, order: list[str]) -> _Line:
        place = {name: i for i, name in enumerate(self._columns)}
        return _Line(*([cells[place[name]] for name in order] for cells in line))

    def _conclude(self, table: LabelCells, told: LabelCells, n_kept: int, n_lost: int) -> None:
        if n_kept:
            cells = format_count(n_kept, "cell")
            self._say(
                f"{self._path} differs from what came with the images in {cells}, which stay as "
                "they are"
            )
        if n_lost:
            self._keep_old()
            self._say(
                f"{self._path}: corrections of {format_count(n_lost, 'cell')} are of images that "
                f"are gone, or that the source says something else of now; {self._old_path} is the "
                "table as it was"
            )
        elif self._made_old:
            self._old_path.unlink(missing_ok=True)
        if not table.columns:  # the source says nothing, and nobody added anything
            self._path.unlink(missing_ok=True)
            self._told_path.unlink(missing_ok=True)
            return
        told.write(self._told_path)
        table.write(self._path)
        if self._path.read_bytes() != self._content:
            columns = ", ".join(table.columns)
            self._say(f"{self._path}: {columns} of the images, as they came with them")

    def _keep_old(self) -> None:
        if not self._made_old and self._content:
            with atomic_write(self._old_path) as file:
                file.write(self._content)
            self._made_old = True


def _keep_corrections(cells: list[str], line: _Line) -> tuple[int, int]:
    """Put corrected cells in; return how many stay, and how many the source contradicts."""
    n_kept = n_lost = 0
    for i, (new, present, told) in enumerate(zip(cells, *line, strict=True)):
        if present in (told, new):
            continue
        if new == told:
            cells[i] = present
            n_kept += 1
        else:
            n_lost += 1
    return n_kept, n_lost


def _find_opened_rows(listing: ImageListing) -> np.ndarray:
    """Find the rows whose container was opened for this listing; bool (N,)."""
    places = listing.places
    if places is None:
        return np.ones(len(listing.paths), bool)
    reused = set(listing.reused)
    is_opened = np.array([c.name not in reused for c in places.containers], bool)
    return np.asarray(is_opened[places.container_of])
