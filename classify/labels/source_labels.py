"""Which label table counts: one that is given, one that came with the images, or folder names."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from classify.errors import LabelError
from classify.labels.containers import list_containers, strip_containers
from classify.labels.part_tables import (
    describe_missing_tables,
    read_joined_header,
    read_joined_rows,
)
from classify.labels.table import (
    LabelsLike,
    LabelTable,
    labels_from_folders,
    make_label_table,
    read_given_labels,
)
from classify.labels.table_rows import (
    TableRows,
    find_label_title,
    parse_rows,
)
from featurize.cache.reader import FeatureCache
from featurize.extraction.completion.label_table import label_table_path
from featurize.sources.folder import FolderSource
from featurize.sources.listing import ImageListing
from featurize.text import list_first

CAME_ALONG = "labels came with the images"


def resolve_labels(
    cache: FeatureCache, labels: LabelsLike, column: str = "label", level: int | None = None
) -> LabelTable:
    """Resolve a labels option to a label table over a cache.

    Parameters
    ----------
    cache : FeatureCache
        Of a set, the labels beside the first cache count.
    labels : LabelTable or path, optional
        A path is read. If not given, the labels that came with the images, which `featurize run`
        writes beside the cache; where there are none, the folder names.
    column : str
        The column that holds the labels.
    level : int, optional
        Which folder names the label, 1 for the topmost: then folder names count. Inferred if not
        given.

    Returns
    -------
    LabelTable

    Raises
    ------
    CallError
        If both a table and a folder level are given, or the level is below 1.
    FileNotFoundError
        If there is no such file.
    LabelError
        If the file is not a label table, or nothing names the labels.
    """
    containers = list_containers(cache)
    given = read_given_labels(labels, column, level, containers)
    if given is not None:
        return given
    if level is None:
        found = find_labels_beside(cache, column)
        if found is not None:
            return found[0]
    is_folder = not containers and Path(cache.root).is_dir()
    table = _label_by_folders(cache.paths, level, containers, is_folder)
    if level is not None:
        return table
    return _mention_columns(table, *_read_header_beside(cache))


def find_labels_beside(
    cache: FeatureCache, column: str = "label", *, columns: Sequence[str] = ()
) -> tuple[LabelTable, TableRows] | None:
    """Find the labels that came with the images, which `featurize run` writes beside the cache.

    Parameters
    ----------
    cache : FeatureCache
    column : str
        The column that holds the labels.
    columns : sequence of str
        Columns that each hold one label, instead of `column`.

    Returns
    -------
    table : LabelTable
        Its labels are empty where `columns` are given.
    rows : TableRows
        Its rows. None in place of both where no labels came with the images.

    Raises
    ------
    LabelError
        If there is such a table without these columns, and no folder names the labels.
    """
    source, header = _read_header_beside(cache)
    containers = list_containers(cache)
    if not header or not (
        columns or _has_labels(source, header, column, lambda: cache.paths, containers)
    ):
        return None
    beside = _list_tables_beside(cache)
    tables = [path for path in beside if path.is_file()]
    rows = read_joined_rows(tables, header, column, columns)
    if not rows.lines:
        return None
    table = _make_table(source, rows, column, containers)
    missing = [path for path in beside if path not in tables]
    return _add_notice(table, describe_missing_tables(cache.files, missing)), rows


def _list_tables_beside(cache: FeatureCache) -> list[Path]:
    return [label_table_path(file) for file in cache.files]  # one for each part


def _read_header_beside(cache: FeatureCache) -> tuple[str, list[str]]:
    """Return what the tables beside a cache are called, and their titles, if there are any."""
    beside = _list_tables_beside(cache)
    source = str(beside[0] if cache.index is None else cache.path / label_table_path(Path("*.h5")))
    tables = [path for path in beside if path.is_file()]
    return source, read_joined_header(tables) if tables else []


def resolve_listing_labels(
    listing: ImageListing, labels: LabelsLike, column: str = "label", level: int | None = None
) -> LabelTable:
    """Resolve a labels option to a label table over images that are in no cache.

    Parameters
    ----------
    listing : ImageListing
    labels, column, level
        As in `resolve_labels`; the labels that came with the images are the listing's.

    Returns
    -------
    LabelTable

    Raises
    ------
    CallError, FileNotFoundError, LabelError
        As `resolve_labels` does.
    """
    containers = list_containers(listing)
    given = read_given_labels(labels, column, level, containers)
    if given is not None:
        return given
    if level is None:
        found = find_listing_labels(listing, column)
        if found is not None:
            return found[0]
    is_folder = isinstance(listing.source, FolderSource)
    table = _label_by_folders(listing.paths, level, containers, is_folder)
    header = [] if level is not None or not listing.columns else _list_titles(listing)
    return _mention_columns(table, listing.root, header)


def find_listing_labels(
    listing: ImageListing, column: str = "label", *, columns: Sequence[str] = ()
) -> tuple[LabelTable, TableRows] | None:
    """Find the labels that came with images that are in no cache.

    Parameters
    ----------
    listing : ImageListing
    column, columns
        As in `find_labels_beside`.

    Returns
    -------
    table : LabelTable
    rows : TableRows
        As `find_labels_beside` returns them; None in place of both where no labels came with the
        images.

    Raises
    ------
    LabelError
        If columns came with the images and not these, and no folder names the labels.
    """
    if not listing.columns:
        return None
    source, containers, header = listing.root, list_containers(listing), _list_titles(listing)
    if not columns and not _has_labels(source, header, column, lambda: listing.paths, containers):
        return None
    cells = [listing.columns[title] for title in header[1:]]
    numbered = enumerate(zip(listing.paths, *cells, strict=True), 2)
    rows = parse_rows(source, header, numbered, column, columns=columns, is_sparse=True)
    return (_make_table(source, rows, column, containers), rows) if rows.lines else None


def _list_titles(listing: ImageListing) -> list[str]:
    # A column called path would be a second one; the keys are what the images are called.
    return ["path", *(title for title in listing.columns if title != "path")]


def _has_labels(
    source: str,
    header: Sequence[str],
    column: str,
    list_paths: Callable[[], Sequence[str]],
    containers: Collection[str],
) -> bool:
    """Tell whether a column holds labels; refuse where folders cannot name them instead."""
    if find_label_title(header, column) is not None:
        return True
    if column != "label" or not any(
        "/" in path for path in strip_containers(list_paths(), containers)
    ):
        parse_rows(source, header, [], column)  # raises: no such column, but these
    return False


def _make_table(
    source: str, rows: TableRows, column: str, containers: Collection[str]
) -> LabelTable:
    title = rows.titles.get("label", "label")
    # Its name becomes that of a head's file.
    name = "labels" if title == "label" else title.replace("/", "_")
    table = make_label_table(name, source, rows, containers)
    notice = f"{CAME_ALONG}: {source}"
    notice += "" if "label" not in rows.titles or title == column else f", column {title!r}"
    if table.splits is not None and len(set(table.splits)) == 1:
        # As of a download that is one split: its name says nothing about what to hold out.
        notice += f"; all are of the split {table.splits[0]!r}, so what is held out is drawn"
        table = replace(table, splits=None)
    return replace(table, notice=f"{notice}; {table.notice}" if table.notice else notice)


def _add_notice(table: LabelTable, notice: str) -> LabelTable:
    if not notice:
        return table
    return replace(table, notice=f"{table.notice}; {notice}" if table.notice else notice)


def _label_by_folders(
    paths: Sequence[str], level: int | None, containers: Collection[str], is_folder: bool
) -> LabelTable:
    stripped = strip_containers(paths, containers)
    if not is_folder and paths and not any("/" in path for path in stripped):
        problem = f"the images have no folder names (the first is {paths[0]!r})"
        if level is not None:
            raise LabelError(f"{problem}, among which --labels-level chooses; leave it out")
        raise LabelError(
            f"{problem}, and no labels came with them; give a table with --labels T.csv (columns "
            "path,label[,split])"
        )
    return labels_from_folders(paths, level, containers)


def _mention_columns(table: LabelTable, source: str, header: Sequence[str]) -> LabelTable:
    """Mention the columns that came with the images, where none of them has been taken."""
    others = [title for title in header if title not in ("path", "split", "group")]
    if not others or find_label_title(header, "label"):  # that one says nothing of any image
        return table
    hint = f"{source} has the columns {list_first(others)}: one of them with --column"
    return _add_notice(table, hint)
