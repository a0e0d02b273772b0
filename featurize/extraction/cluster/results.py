"""What comes back from a worker: a table with a row for each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from featurize.extraction.cluster.blocks import from_binary_column, to_binary_column
from featurize.pipeline.prefetch import PrefetchedImage

if TYPE_CHECKING:
    import pyarrow as pa

KNOWN = -1  # in place of the row to copy: the driver knows which one
NO_COPY = -2
NO_ROW = -1  # the row of a table that a worker gives which cannot go on
_UNCHANGED, _CHANGED, _COMPUTED = 1, 2, 4


@dataclass
class BlockSink:
    """Collects what a worker finds out about the images of a block.

    Attributes
    ----------
    dtypes : dict of str to str
        Type in the cache of each layer computed, by dataset name, in the engine's order.
    computed : list of PrefetchedImage
        Images that were run.
    features : list of list of arrays of shape (B, D)
        Of each batch of `computed`, one array per layer.
    others : list of PrefetchedImage
        All other images.
    """

    dtypes: Mapping[str, str]
    computed: list[PrefetchedImage] = field(default_factory=list)
    features: list[list[np.ndarray]] = field(default_factory=list)
    others: list[PrefetchedImage] = field(default_factory=list)

    def put(self, items: list[PrefetchedImage], features: list[np.ndarray] | None) -> None:
        """Take rows; see `featurize.pipeline.embedding.RowSink`."""
        if features is None:
            self.others += items
            return
        self.computed += items
        with np.errstate(over="ignore"):  # the driver finds what is not finite
            self.features.append(
                [
                    values.astype(dtype, copy=False)
                    for values, dtype in zip(features, self.dtypes.values(), strict=True)
                ]
            )

    def close(self) -> None:
        """Do nothing: the rows leave with `make_result_table`."""

    def drain(self) -> None:
        """Do nothing, as `close`."""


def make_result_table(sink: BlockSink, rows: np.ndarray, dtypes: Mapping[str, str]) -> "pa.Table":
    """Make the table of a block's results.

    Parameters
    ----------
    sink : BlockSink
        Its items have rows of the block.
    rows : int64 array of shape (n,)
        Rows of the cache.
    dtypes : mapping of str to str
        As `BlockSink.dtypes`.

    Returns
    -------
    pa.Table
        A row for each item, those computed first. Of the others the lists of features are empty.
    """
    import pyarrow as pa

    items = [*sink.computed, *sink.others]
    n_computed = len(sink.computed)
    flags = [
        _UNCHANGED * item.is_unchanged + _CHANGED * item.is_changed + _COMPUTED * (k < n_computed)
        for k, item in enumerate(items)
    ]
    copies = [
        NO_COPY if copy_of is None else copy_of if copy_of == KNOWN else int(rows[copy_of])
        for copy_of in (_as_row(item) for item in items)
    ]
    digests = np.frombuffer(b"".join(item.digest for item in items), np.uint8).reshape(-1, 32)
    columns = {
        "row": pa.array(rows[np.array([item.row for item in items], np.intp)]),
        "size": pa.array([item.size for item in items], pa.int64()),
        "stamp": pa.array([item.stamp for item in items], pa.int64()),
        "sha256": to_binary_column(digests),
        "reason": pa.array([item.reason for item in items], pa.uint8()),
        "flags": pa.array(flags, pa.uint8()),
        "copy_of": pa.array(copies, pa.int64()),
    }
    for k, (name, dtype) in enumerate(dtypes.items()):
        values = [features[k] for features in sink.features]
        stacked = np.concatenate(values) if values else np.zeros((0, 1), dtype)
        ends = np.full(len(items) + 1, stacked.size, np.int64)
        ends[: n_computed + 1] = np.arange(n_computed + 1) * stacked.shape[1]
        columns[f"features/{name}"] = pa.LargeListArray.from_arrays(
            pa.array(ends), pa.array(stacked.reshape(-1))
        )
    return pa.table(columns)


def make_empty_table(dtypes: Mapping[str, str]) -> "pa.Table":
    """Make the table of a worker that cannot go on: it has one row, which is none.

    Parameters
    ----------
    dtypes : mapping of str to str
        As `BlockSink.dtypes`.

    Returns
    -------
    pa.Table
        Its row is `NO_ROW`.
    """
    sink = BlockSink(dtypes, others=[PrefetchedImage(0, 0, 0)])
    return make_result_table(sink, np.array([NO_ROW]), dtypes)


def _as_row(item: PrefetchedImage) -> int | None:
    """Return the row to copy; an index of a worker knows no rows of older caches."""
    return item.copy_of if isinstance(item.copy_of, int) else None


@dataclass(frozen=True)
class Results:
    """What a table of results says.

    Attributes
    ----------
    computed : list of PrefetchedImage
        n images with features.
    features : list of arrays of shape (n, D)
        One per layer.
    others : list of PrefetchedImage
        Images without: unchanged, changed, failed, or copies.
    """

    computed: list[PrefetchedImage]
    features: list[np.ndarray]
    others: list[PrefetchedImage]


def read_result_table(table: "pa.Table", layers: Sequence[str], is_open: np.ndarray) -> Results:
    """Read a table of results; rows that came before are left out.

    Parameters
    ----------
    table : pa.Table
        As `make_result_table` makes it.
    layers : sequence of str
        Dataset names.
    is_open : bool array of shape (N,)
        Which rows of the cache are still to come; updated in place.

    Returns
    -------
    Results
    """
    columns = {
        name: table.column(name).combine_chunks()
        for name in table.column_names
        if not name.startswith("features/")
    }
    rows = columns["row"].to_numpy()
    fresh = rows >= 0
    fresh[fresh] = is_open[rows[fresh]]
    is_open[rows[fresh]] = False
    flags, digests = columns["flags"].to_numpy(), from_binary_column(columns["sha256"])
    is_computed = (flags & _COMPUTED) > 0
    numbers = [columns[name].to_pylist() for name in ("row", "size", "stamp", "reason", "copy_of")]
    items = [
        PrefetchedImage(
            row,
            size,
            stamp,
            digest=digests[k].tobytes(),
            reason=reason,
            is_unchanged=bool(flags[k] & _UNCHANGED),
            is_changed=bool(flags[k] & _CHANGED),
            copy_of=None if copy_of == NO_COPY else copy_of,
        )
        for k, (row, size, stamp, reason, copy_of) in enumerate(zip(*numbers, strict=True))
    ]
    taken = fresh[is_computed]
    features = []
    for name in layers if len(taken) else ():
        values = table.column(f"features/{name}").combine_chunks().flatten()
        by_row = values.to_numpy().reshape(len(taken), -1)
        features.append(by_row if taken.all() else by_row[taken])
    return Results(
        [items[k] for k in np.flatnonzero(fresh & is_computed)],
        features,
        [items[k] for k in np.flatnonzero(fresh & ~is_computed)],
    )
