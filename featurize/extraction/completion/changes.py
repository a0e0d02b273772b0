"""Compare the images with a cache: copy what is unchanged, and find the rows to process."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np

from featurize.cache.format import FAILED, MARKED, PENDING
from featurize.cache.integrity import is_damaged
from featurize.cache.reader import FeatureCache
from featurize.cache.writer import CacheWriter
from featurize.errors import CallError
from featurize.files import hash_bytes
from featurize.images.reading import ImageFile
from featurize.images.reasons import TRANSIENT
from featurize.sources.listing import UNKNOWN_SIZE, ImageListing, read_images

MAX_VANISHED_SHARE = 0.1
COPY_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class ListingDiff:
    """A listing of N images compared with the rows of a cache.

    Attributes
    ----------
    old_row : int array of shape (N,)
        Row of each listed image in the cache; -1 if it has none.
    unchanged : bool array of shape (N,)
        Whether size and stamp of the image equal those of its row.
    maybe_unchanged : bool array of shape (N,)
        Whether only the size is known to be equal: one of the stamps is 0, which proves nothing,
        as of a file that was read soon after it was written.
    n_vanished : int
        Number of rows whose image is no longer listed.
    """

    old_row: np.ndarray
    unchanged: np.ndarray
    maybe_unchanged: np.ndarray
    n_vanished: int

    @property
    def has_same_paths(self) -> bool:
        """Whether the cache has exactly the rows of the listed images."""
        return self.n_vanished == 0 and bool((self.old_row >= 0).all())


def diff_listing(listing: ImageListing, cache: FeatureCache) -> ListingDiff:
    """Match images with rows by path, size and stamp, without opening an image.

    Parameters
    ----------
    listing : ImageListing
    cache : FeatureCache

    Returns
    -------
    ListingDiff
    """
    if listing.paths == cache.paths:  # the common case, without a dictionary
        old_row = np.arange(cache.n_rows)
    else:
        row_of = cache.row_of
        old_row = np.array([row_of.get(path, -1) for path in listing.paths], np.int64)
    sizes, stamps = cache.column("size", old_row), cache.column("mtime_ns", old_row)
    is_unknown = listing.sizes == UNKNOWN_SIZE
    has_same_size = (old_row >= 0) & (is_unknown | (sizes == listing.sizes))
    unchanged = has_same_size & (stamps == listing.stamps) & (stamps != 0)
    maybe_unchanged = has_same_size & ((stamps == 0) | (listing.stamps == 0))
    return ListingDiff(
        old_row, unchanged, maybe_unchanged, cache.n_rows - int((old_row >= 0).sum())
    )


def refuse_mass_removal(
    listing: ImageListing, cache: FeatureCache, diff: ListingDiff, n_more: float = 0
) -> None:
    """Check that at most `MAX_VANISHED_SHARE` of the rows would be lost.

    More suggests a mistyped or half-mounted folder. Renamed images are not lost: if many paths
    are gone, new files of the same sizes are hashed first.

    Parameters
    ----------
    listing : ImageListing
    cache : FeatureCache
    diff : ListingDiff
        Of the two.
    n_more : float
        Further rows that may go, as of a part of a larger cache.

    Raises
    ------
    CallError
        If more rows would be lost.
    """
    limit = MAX_VANISHED_SHARE * cache.n_rows + n_more
    if diff.n_vanished <= limit:
        return
    is_listed = np.zeros(cache.n_rows, bool)
    is_listed[diff.old_row[diff.old_row >= 0]] = True
    vanished_rows = np.flatnonzero(~is_listed)
    n_lost = diff.n_vanished - _count_renamed(listing, cache, diff, vanished_rows)
    if n_lost > limit:
        raise CallError(
            f"{n_lost} of the {cache.n_rows} images in {cache.path} are not in {listing.root} "
            f"(first: {cache.paths[vanished_rows[0]]}). Is the folder right, and mounted? "
            "If they are meant to go, add --prune"
        )


def _count_renamed(
    listing: ImageListing, cache: FeatureCache, diff: ListingDiff, vanished_rows: np.ndarray
) -> int:
    """Count the images that have another key now, by their bytes; behind a network by stamps."""
    sizes, stamps = cache.column("size", vanished_rows), cache.column("mtime_ns", vanished_rows)
    new_rows = np.flatnonzero(diff.old_row < 0)
    if listing.source.is_remote:
        vanished = Counter(zip(sizes.tolist(), stamps.tolist(), strict=True))
        new = zip(listing.sizes[new_rows].tolist(), listing.stamps[new_rows].tolist(), strict=True)
        return (vanished & Counter(key for key in new if key[1])).total()
    vanished_digests = Counter(row.tobytes() for row in cache.column("sha256", vanished_rows))
    is_unknown = listing.sizes[new_rows] == UNKNOWN_SIZE
    candidates = new_rows[is_unknown | np.isin(listing.sizes[new_rows], sizes)]

    def hash_images(rows: np.ndarray) -> list[bytes]:
        images = (image for _, image in read_images(listing, rows))
        return [hash_bytes(image.data) for image in images if isinstance(image, ImageFile)]

    chunks = listing.source.split_rows(listing, candidates)
    with ThreadPoolExecutor() as pool:
        digests = Counter(chain.from_iterable(pool.map(hash_images, chunks)))
    return (vanished_digests & digests).total()


@dataclass(frozen=True)
class RetryPolicy:
    """Which finished rows to process again.

    Attributes
    ----------
    failed : bool
        All failed rows.
    rehash : bool
        All rows.
    transient : bool
        Rows that failed for a reason of the system's (`featurize.images.reasons.TRANSIENT`).
    """

    failed: bool = False
    rehash: bool = False
    transient: bool = True

    def select_failures(self, cache: FeatureCache) -> np.ndarray:
        """Select the failed rows to try again.

        Parameters
        ----------
        cache : FeatureCache

        Returns
        -------
        bool array of shape (N,)
        """
        reasons = TRANSIENT if self.transient else ()
        transient = np.isin(cache.column("reason"), list(reasons))
        return np.asarray((cache.status == FAILED) & (transient | self.failed))


@dataclass(frozen=True)
class PendingRows:
    """Rows of a cache that a run has to process.

    Attributes
    ----------
    recheck : int array
        Finished rows whose image is to be hashed, because its size or stamp changed or `rehash` is
        set. With the same hash the row is not computed again.
    compute : int array
        Rows that are pending, damaged or to be tried again.
    """

    recheck: np.ndarray
    compute: np.ndarray


def find_pending_rows(
    cache: FeatureCache, unchanged: np.ndarray, retry: RetryPolicy
) -> PendingRows:
    """Find the rows of a cache that a run has to process.

    Parameters
    ----------
    cache : FeatureCache
    unchanged : bool array of shape (N,)
        Whether each row's image has the recorded size and time.
    retry : RetryPolicy

    Returns
    -------
    PendingRows
    """
    must_compute = (cache.status == PENDING) | retry.select_failures(cache)
    if retry.rehash:
        must_compute |= cache.damaged_rows()
    must_recheck = (~unchanged | retry.rehash) & ~must_compute
    return PendingRows(np.flatnonzero(must_recheck), np.flatnonzero(must_compute))


@dataclass(frozen=True)
class ReusedRows:
    """Rows of the partial cache whose features were copied from the old one.

    Attributes
    ----------
    rows : int array of shape (n,)
        In the partial cache, ascending.
    old_rows : int array of shape (n,)
        Rows of the same images in the old cache.
    """

    rows: np.ndarray
    old_rows: np.ndarray


def copy_unchanged(
    cache: FeatureCache,
    into: CacheWriter,
    diff: ListingDiff,
    listing: ImageListing,
    retry: RetryPolicy,
) -> ReusedRows:
    """Copy the rows of unchanged images from the old cache.

    If the grown cache has no new layers, copied rows are marked. Otherwise they stay pending and
    are returned. Damaged rows are not copied.

    Parameters
    ----------
    cache : FeatureCache
        The old cache.
    into : CacheWriter
        Of the partial cache.
    diff : ListingDiff
        Of `listing` and `cache`.
    listing : ImageListing
    retry : RetryPolicy
        Rows to process again are not copied.

    Returns
    -------
    ReusedRows
        Rows that lack the new layers only; empty if there are no new layers.
    """
    status, reason, sha256 = cache.status, cache.column("reason"), cache.column("sha256")
    sizes, stamps = cache.column("size"), cache.column("mtime_ns")
    old_row = diff.old_row
    must_retry = retry.select_failures(cache) | retry.rehash
    is_known = diff.unchanged & (into.status == PENDING) & ~must_retry[old_row]
    failed_rows = np.flatnonzero(is_known & (status[old_row] == FAILED))
    if len(failed_rows):
        old_rows = old_row[failed_rows]
        stat_columns = sizes[old_rows], stamps[old_rows]
        into.record_failures(failed_rows, reason[old_rows], sha256[old_rows], *stat_columns)
    has_all_layers = set(into.layout.layers) == set(cache.layers)
    if not has_all_layers:  # the files are read for the new layers, and their hashes compared
        is_known |= diff.maybe_unchanged & (into.status == PENDING) & ~must_retry[old_row]
    rows = np.flatnonzero(is_known & (status[old_row] == MARKED))
    row_bytes = sum(info.dim * 4 for info in cache.layers.values())
    block_rows = max(1, COPY_CHUNK_BYTES // row_bytes)
    is_sound = np.ones(len(rows), bool)
    for start in range(0, len(rows), block_rows):
        block = rows[start : start + block_rows]
        old_rows = old_row[block]
        features = {name: cache.stored(name, old_rows) for name in cache.layers}
        checksums = {name: cache.checksums(name, old_rows) for name in cache.layers}
        is_good = ~np.any(
            [is_damaged(checksums[name], sha256[old_rows], features[name]) for name in features],
            axis=0,
        )
        is_sound[start : start + block_rows] = is_good
        block, old_rows = block[is_good], old_rows[is_good]
        features = {name: values[is_good] for name, values in features.items()}
        checksums = {name: values[is_good] for name, values in checksums.items()}
        if has_all_layers:
            stat_columns = sizes[old_rows], stamps[old_rows]
            into.fill(block, features, sha256[old_rows], *stat_columns, checksums)
            into.flush()
        else:
            into.write_partial(block, features, sha256[old_rows], checksums)
    into.flush()
    rows = rows[is_sound]  # damaged rows are computed again
    return ReusedRows(rows[:0], rows[:0]) if has_all_layers else ReusedRows(rows, old_row[rows])
