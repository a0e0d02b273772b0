"""Labels that came with the images, in a table beside the cache: the cache itself holds none.

The table may be corrected by hand. So what the source said is kept beside it: a cell that differs
from that was corrected, and any other one follows the source.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurize.cache.reader import FeatureCache
from featurize.extraction.completion.known_images import COLUMNS_KEY
from featurize.files import atomic_write
from featurize.sources.listing import ImageListing
from featurize.text import format_count

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


def _source_path(cache: Path) -> Path:
    return cache.with_name(cache.name + ".labels.source")


@dataclass
class _Table:
    """Cells by key and column; what is not in it is empty."""

    columns: list[str] = field(default_factory=list)
    rows: dict[str, list[str]] = field(default_factory=dict)

    def find(self, key: str, columns: Sequence[str]) -> list[str] | None:
        """Return the cells of a key in the order of some columns; None if the key is not there."""
        cells = self.rows.get(key)
        if cells is None or columns == self.columns:
            return cells
        by_name = dict(zip(self.columns, cells, strict=True))
        return [by_name.get(name, "") for name in columns]


def has_expected_labels(cache: FeatureCache) -> bool:
    """Tell whether it is known what the source of a cache said, if it said anything.

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
        table = _read_table(_source_path(cache.path))
    except (OSError, ValueError, csv.Error):
        return False
    return set(expected) <= set(table.columns)


def write_label_table(cache: Path, listing: ImageListing, say: Callable[[str], None]) -> None:
    """Write what a source says of its images beside the cache, if it says anything.

    In a table that is there, cells that were corrected stay, as long as the source says of that
    image what it said before; columns that were added stay too. All other cells are the source's.
    Where corrections go, the table as it was is kept as ``C.h5.labels.csv.old``. A table in another
    form is left alone.

    Parameters
    ----------
    cache : Path
    listing : ImageListing
    say : callable
        Called with a sentence about what was done.

    Raises
    ------
    OutputError
        If a table cannot be written.
    """
    path, source_path = label_table_path(cache), _source_path(cache)
    try:
        before = _read_table(source_path)
    except (OSError, ValueError, csv.Error):
        before = _Table()
    named = {name: cells for name, cells in listing.columns.items() if name != PATH_COLUMN}
    if not named and not before.columns:
        return
    told = _merge_reused(listing, named, before)
    try:
        present = _read_table(path)
    except FileNotFoundError:
        present = _Table()
    except (OSError, ValueError, csv.Error) as error:
        say(f"{path} is left as it is; it cannot be read as the table of a run: {error}")
        return
    merged, n_kept, n_lost = _merge_corrections(listing, told, before, present)
    if n_kept:
        cells = format_count(n_kept, "cell")
        say(f"{path} differs from what came with the images in {cells}, which stay as they are")
    content = _format_table(merged, listing.paths)
    if not path.exists() or path.read_bytes() != content:
        if n_lost:
            old = path.with_name(path.name + ".old")
            _write(old, path.read_bytes())
            say(
                f"{path}: the source says something else now of images whose cells were corrected "
                f"({n_lost:,}); the table as it was is {old}"
            )
        _write(path, content)
        if merged.columns:
            say(f"{path}: {', '.join(merged.columns)} of the images, as they came with them")
    _write(source_path, _format_table(told, listing.paths))
    if not merged.columns:  # a source that says nothing, and nobody added anything
        path.unlink()
        source_path.unlink()


def _merge_reused(listing: ImageListing, named: dict[str, list[str]], before: _Table) -> _Table:
    """Return what the source says now; of containers that were not opened, what it said before."""
    if not listing.reused or not before.columns:
        rows = zip(*named.values(), strict=True) if named else ([] for _ in listing.paths)
        return _Table([*named], dict(zip(listing.paths, map(list, rows), strict=True)))
    columns = list(dict.fromkeys((*before.columns, *named)))
    empty = [""] * len(listing.paths)
    cells_of = [named.get(name, empty) for name in columns]
    is_opened = _find_opened_rows(listing)
    table = _Table(columns)
    for row, key in enumerate(listing.paths):
        known = None if is_opened[row] else before.find(key, columns)
        table.rows[key] = [cells[row] for cells in cells_of] if known is None else known
    return table


def _merge_corrections(
    listing: ImageListing, told: _Table, before: _Table, present: _Table
) -> tuple[_Table, int, int]:
    """Return the table to write, and how many corrected cells stay in it, and how many go."""
    added = [name for name in present.columns if name not in before.columns]
    columns = [*told.columns, *(name for name in added if name not in told.columns)]
    looked_at = list(dict.fromkeys((*columns, *before.columns)))
    empty = [""] * len(looked_at)
    # A number of a row that was read again may be that of another image.
    is_other = _find_opened_rows(listing) & listing.has_row_numbers
    merged, n_kept, n_lost = _Table(columns), 0, 0
    for row, key in enumerate(listing.paths):
        cells = list(told.find(key, looked_at) or empty)
        base = before.find(key, looked_at) or empty
        theirs = present.find(key, looked_at) or base
        if theirs != base:
            for i, (new, old, cell) in enumerate(zip(cells, base, theirs, strict=True)):
                if cell in (old, new):
                    continue
                if new == old and not is_other[row]:
                    cells[i] = cell
                    n_kept += 1
                else:
                    n_lost += 1
        merged.rows[key] = cells[: len(columns)]
    for key in present.rows.keys() - told.rows.keys():  # of images that are gone
        theirs, base = present.find(key, looked_at), before.find(key, looked_at) or empty
        n_lost += sum(a != b for a, b in zip(theirs or base, base, strict=True))
    return merged, n_kept, n_lost


def _find_opened_rows(listing: ImageListing) -> np.ndarray:
    """Find the rows whose container was opened for this listing; bool (N,)."""
    places = listing.places
    if places is None:
        return np.ones(len(listing.paths), bool)
    reused = set(listing.reused)
    is_opened = np.array([c.name not in reused for c in places.containers], bool)
    return np.asarray(is_opened[places.container_of])


def _read_table(path: Path) -> _Table:
    """Read a table; raise `ValueError` where it has another form than a run writes."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if header[:1] != [PATH_COLUMN]:
            raise ValueError(f"its first column is not {PATH_COLUMN}")
        table = _Table(header[1:])
        for cells in reader:
            if len(cells) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(cells)} cells")
            table.rows[cells[0]] = cells[1:]
    return table


def _format_table(table: _Table, keys: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([PATH_COLUMN, *table.columns])
    for key in keys:
        writer.writerow([key, *table.rows[key]])
    return text.getvalue().encode("utf-8", "replace")


def _write(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        return
    with atomic_write(path) as file:
        file.write(content)
