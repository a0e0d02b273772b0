"""Labels that came with the images, in a table beside the cache: the cache itself holds none."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from featurize.cache.reader import FeatureCache
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
    """Tell whether the label table is there, if labels came with a cache's images.

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
        columns, _ = _read_table(label_table_path(cache.path))
    except (OSError, ValueError, csv.Error):
        return False
    return set(expected) <= set(columns)


def write_label_table(cache: Path, listing: ImageListing, say: Callable[[str], None]) -> None:
    """Write what a source says of its images beside the cache, if it says anything.

    A table that is there keeps its cells: somebody may have corrected them. Images and columns are
    added, and images that are gone are removed. Where keys are numbers of rows, and the rows were
    read again, the source's cells take their place: an old cell may be of another image. A table
    in another form is left alone.

    Parameters
    ----------
    cache : Path
    listing : ImageListing
    say : callable
        Called with a sentence about what was done.

    Raises
    ------
    OutputError
        If the table cannot be written.
    """
    path = label_table_path(cache)
    named = {name: cells for name, cells in listing.columns.items() if name != PATH_COLUMN}
    if not named and not (listing.reused and path.exists()):
        return
    old_columns: list[str] = []
    old_rows: dict[str, list[str]] = {}
    if path.exists():
        try:
            old_columns, old_rows = _read_table(path)
        except (OSError, ValueError, csv.Error) as error:
            say(f"{path} is left as it is; it cannot be read as the table of a run: {error}")
            return
    columns = list(dict.fromkeys((*old_columns, *named)))
    empty = [""] * len(listing.paths)
    new_cells = [named.get(name, empty) for name in columns]
    is_read_again = _find_rows_read_again(listing)
    n_kept = n_replaced = 0
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([PATH_COLUMN, *columns])
    for row, key in enumerate(listing.paths):
        cells = [cells[row] for cells in new_cells]
        old = old_rows.get(key)
        if old is not None:
            differs = any(a != b for a, b in zip(old, cells, strict=False) if b)
            n_replaced += differs and bool(is_read_again[row])
            n_kept += differs and not is_read_again[row]
            if not is_read_again[row]:
                cells = [*old, *cells[len(old) :]]
        writer.writerow([key, *cells])
    content = text.getvalue().encode("utf-8", "replace")
    if n_kept:
        say(
            f"{path} has other labels than the images came with, in {n_kept:,} rows; they stay. "
            "Remove the file to have those of the source"
        )
    if path.exists() and path.read_bytes() == content:
        return
    if n_replaced:
        copy = path.with_name(path.name + ".old")
        with atomic_write(copy) as file:
            file.write(path.read_bytes())
        say(f"{path}: {n_replaced:,} rows are of other images now; the table before is {copy}")
    with atomic_write(path) as file:
        file.write(content)
    say(f"{path}: {', '.join(columns)} of the images, as they came with them")


def _find_rows_read_again(listing: ImageListing) -> np.ndarray:
    """Find the rows whose keys are numbers, in containers that were opened; bool (N,)."""
    places = listing.places
    if places is None or not listing.has_row_numbers:
        return np.zeros(len(listing.paths), bool)
    reused = set(listing.reused)
    is_opened = np.array([c.name not in reused for c in places.containers], bool)
    return np.asarray(is_opened[places.container_of])


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
