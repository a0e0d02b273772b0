"""What has changed between the cache and the images, and what is left to do."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from featurize.cache.format import FAILED, PENDING
from featurize.cache.reader import FeatureCache
from featurize.errors import CallError, ImageUnreadableError
from featurize.files import hash_bytes
from featurize.images import reading
from featurize.images.reasons import TRANSIENT
from featurize.sources.folder import ImageListing

MAX_VANISHED_SHARE = 0.1


@dataclass(frozen=True)
class ListingDiff:
    """A listing beside a cache's rows.

    Attributes
    ----------
    old_row : int array of shape (N,)
        The row of each listed image in the cache; -1 where it has none.
    unchanged : bool array of shape (N,)
        Its size and time are those of its row.
    young : bool array of shape (N,)
        Its size is; it was read too soon after it was written to be sure by the time.
    vanished : int
        Rows whose image is no longer listed.
    """

    old_row: np.ndarray
    unchanged: np.ndarray
    maybe_unchanged: np.ndarray
    n_vanished: int

    @property
    def has_same_paths(self) -> bool:
        """Whether the cache has exactly the listed images."""
        return self.n_vanished == 0 and bool((self.old_row >= 0).all())


def diff_listing(listing: ImageListing, cache: FeatureCache) -> ListingDiff:
    """Match images with rows by path, size and time; no image is opened."""
    if listing.paths == cache.paths:  # the common case, without a dictionary
        old_row = np.arange(cache.n_rows)
    else:
        row_of = cache.row_of
        old_row = np.array([row_of.get(path, -1) for path in listing.paths], np.int64)
    sizes, mtimes_ns = cache.column("size")[old_row], cache.column("mtime_ns")[old_row]
    unchanged = (old_row >= 0) & (sizes == listing.sizes) & (mtimes_ns == listing.mtimes_ns)
    young = (old_row >= 0) & (sizes == listing.sizes) & (mtimes_ns == 0) & ~unchanged
    return ListingDiff(old_row, unchanged, young, cache.n_rows - int((old_row >= 0).sum()))


def refuse_mass_removal(listing: ImageListing, cache: FeatureCache, diff: ListingDiff) -> None:
    """Refuse where more than a tenth of the rows would be lost: a mistyped or half-mounted folder.

    Renamed images are not lost; so where many paths are gone, new files of the same sizes are
    looked into first.

    Raises
    ------
    CallError
    """
    limit = MAX_VANISHED_SHARE * cache.n_rows
    if diff.n_vanished <= limit:
        return
    kept = np.zeros(cache.n_rows, bool)
    kept[diff.old_row[diff.old_row >= 0]] = True
    gone = np.flatnonzero(~kept)
    lost = diff.n_vanished - _count_renamed(listing, cache, diff, gone)
    if lost > limit:
        raise CallError(
            f"{lost} of the {cache.n_rows} images in {cache.path} are not in {listing.root} "
            f"(first: {cache.paths[gone[0]]}). Is the folder right, and mounted? "
            "If they are meant to go, add --prune"
        )


def _count_renamed(
    listing: ImageListing, cache: FeatureCache, diff: ListingDiff, gone: np.ndarray
) -> int:
    sizes = set(cache.column("size")[gone].tolist())
    gone_digests = Counter(row.tobytes() for row in cache.column("sha256")[gone])
    new = [row for row in np.flatnonzero(diff.old_row < 0) if int(listing.sizes[row]) in sizes]

    def digest(row: int) -> bytes:
        try:
            return hash_bytes(reading.read_image_file(listing.full_path(row)).data)
        except ImageUnreadableError:
            return b""

    with ThreadPoolExecutor() as pool:
        return (gone_digests & Counter(pool.map(digest, new))).total()


@dataclass(frozen=True)
class RetryPolicy:
    """Which finished rows are looked at again.

    Attributes
    ----------
    failed : bool
        Every failed one.
    rehash : bool
        All of them.
    transient : bool
        Those that failed by the system's fault; every run does so.
    """

    failed: bool = False
    rehash: bool = False
    transient: bool = True

    def select_failures(self, cache: FeatureCache) -> np.ndarray:
        """Failed rows to try again: bool (N,)."""
        reasons = TRANSIENT if self.transient else ()
        transient = np.isin(cache.column("reason"), list(reasons))
        return np.asarray((cache.status == FAILED) & (transient | self.failed))


@dataclass(frozen=True)
class PendingRows:
    """Which rows of a cache a run has to look at.

    Attributes
    ----------
    look : int array
        Finished rows whose file changed its time, or is read again: unchanged after all where its
        bytes have the same hash.
    compute : int array
        Others: pending, or to be tried again.
    """

    recheck: np.ndarray
    compute: np.ndarray


def find_pending_rows(
    cache: FeatureCache, unchanged: np.ndarray, retry: RetryPolicy
) -> PendingRows:
    """Rows of a cache that are not finished, given which of them are unchanged: bool (N,)."""
    again = (cache.status == PENDING) | retry.select_failures(cache)
    if retry.rehash:
        again |= cache.damaged_rows()
    look = (~unchanged | retry.rehash) & ~again
    return PendingRows(np.flatnonzero(look), np.flatnonzero(again))
