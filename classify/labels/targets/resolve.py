"""Which labels count, and what kind they are."""

from collections.abc import Callable, Collection
from pathlib import Path

from classify.errors import LabelError
from classify.kinds import CLASS
from classify.labels.containers import list_containers
from classify.labels.source_labels import (
    find_labels_beside,
    find_listing_labels,
    resolve_labels,
    resolve_listing_labels,
)
from classify.labels.table import (
    LabelsLike,
    LabelTable,
    read_cells,
)
from classify.labels.table_rows import TableRows
from classify.labels.targets.kinds import KindOptions, recognise_kind
from classify.labels.targets.table import TargetTable, make_table_of_columns, make_target_table
from featurize.cache.reader import FeatureCache
from featurize.sources.listing import ImageListing

TargetsLike = LabelsLike | TargetTable


def resolve_targets(
    cache: FeatureCache,
    labels: TargetsLike,
    options: KindOptions,
    column: str = "label",
    level: int | None = None,
) -> LabelTable | TargetTable:
    """Resolve the options of labels to a table of classes, or of another kind.

    Parameters
    ----------
    cache : FeatureCache
    labels : LabelTable, TargetTable or path, optional
        As in `classify.labels.source_labels.resolve_labels`.
    options : KindOptions
        Where it names no kind, the kind is recognised; a notice says so if it is not ``class``.
    column : str
        The column that holds the labels, unless the options name several.
    level : int, optional
        Which folder names the class, 1 for the topmost.

    Returns
    -------
    LabelTable or TargetTable
        The first for classes.

    Raises
    ------
    CallError
        If folder names are asked for what they cannot say.
    FileNotFoundError
        If there is no such file.
    LabelError, TooFewImagesError
        If the table does not hold such labels, or there is none.
    """
    return _resolve(
        labels,
        options,
        column,
        level,
        list_containers(cache),
        lambda: find_labels_beside(cache, column, columns=options.columns),
        lambda: resolve_labels(cache, _as_classes(labels), column, level),
    )


def resolve_listing_targets(
    listing: ImageListing,
    labels: TargetsLike,
    options: KindOptions,
    column: str = "label",
    level: int | None = None,
) -> LabelTable | TargetTable:
    """Resolve the options of labels to a table over images that are in no cache.

    Parameters
    ----------
    listing : ImageListing
    labels, options, column, level
        As in `resolve_targets`; the labels that came with the images are the listing's.

    Returns
    -------
    LabelTable or TargetTable
        The first for classes.

    Raises
    ------
    CallError, FileNotFoundError, LabelError, TooFewImagesError
        As `resolve_targets` does.
    """
    return _resolve(
        labels,
        options,
        column,
        level,
        list_containers(listing),
        lambda: find_listing_labels(listing, column, columns=options.columns),
        lambda: resolve_listing_labels(listing, _as_classes(labels), column, level),
    )


def _as_classes(labels: TargetsLike) -> LabelsLike:
    return None if isinstance(labels, TargetTable) else labels


def _resolve(
    labels: TargetsLike,
    options: KindOptions,
    column: str,
    level: int | None,
    containers: Collection[str],
    find_labels: Callable[[], tuple[LabelTable, TableRows] | None],
    resolve_classes: Callable[[], LabelTable],
) -> LabelTable | TargetTable:
    """Resolve labels, given where those that came with the images are, and how classes are."""
    if isinstance(labels, TargetTable):
        return labels
    if options.kind == CLASS or level is not None:
        if options.needs_table:
            raise LabelError(_describe_folders(options))
        return resolve_classes()
    rows: TableRows | None = None
    if labels is None:
        found = find_labels()
        if found is None:
            if options.needs_table:
                raise LabelError(_describe_folders(options))
            return resolve_classes()
        table, rows = found
    elif isinstance(labels, LabelTable):
        table = labels
        if options.columns:
            raise LabelError(
                f"{table.source} has one column of labels; give the file for --columns"
            )
    else:
        table, rows = read_cells(
            Path(labels),
            column,
            columns=options.columns,
            may_be_empty=True,
            containers=containers,
        )
    if options.columns and rows is not None:
        return make_table_of_columns(table, rows, options.columns)
    kind = options.kind or recognise_kind(table.labels)
    if kind == CLASS:
        _refuse_empty_cells(table, rows)
        return table
    return make_target_table(table, kind, options, lines=() if rows is None else rows.lines)


def _describe_folders(options: KindOptions) -> str:
    return (
        f"names of folders are classes; labels of the kind {options.kind} are given by a table: "
        "--labels T.csv (columns path,label)"
    )


def _refuse_empty_cells(table: LabelTable, rows: TableRows | None) -> None:
    """Refuse an image without a class, as tables of classes do."""
    if "" in table.labels:
        i = table.labels.index("")
        line = f", line {rows.lines[i]}" if rows is not None and rows.lines[i] else ""
        raise LabelError(
            f"{table.source}{line}: the label is empty; leave the line out, or give --kind multi "
            "if images have any number of labels"
        )
