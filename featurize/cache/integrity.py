"""A checksum for each row and layer: whether the numbers on disk are those that were written.

Two CRC-32 a row and layer: of the row's ``sha256``, and of its features. The first says whose
checksum it is. A release that knows nothing of checksums writes a row and leaves an older one
there; then the first no longer agrees, and the row counts as having none.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from featurize.cache.format import FAILED, MARKED
from featurize.errors import CacheFormatError

if TYPE_CHECKING:
    from featurize.cache.reader import FeatureCache

MAX_BLOCK_BYTES = 64 << 20  # how much a pass over features holds at a time


def compute_checksums(sha256: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Checksums of some rows of one layer.

    Parameters
    ----------
    sha256 : uint8 array of shape (n, 32)
    features : array of shape (n, D)
        In the type in which they are stored.

    Returns
    -------
    uint32 array of shape (n, 2)
        The ISO-HDLC CRC-32, as of zlib and PNG, of each row's hash and features.
    """
    return np.column_stack([_crc32_rows(sha256), _crc32_rows(features)])


def is_unchecked(stored: np.ndarray, sha256: np.ndarray) -> np.ndarray:
    """Which rows have no checksum of their own: bool (n,), from uint32 (n, 2), uint8 (n, 32)."""
    return np.asarray((stored[:, 0] != _crc32_rows(sha256)) | ~stored.any(axis=1))


def is_damaged(stored: np.ndarray, sha256: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Which rows have other numbers than were written: bool (n,); never one without checksum."""
    return np.asarray(~is_unchecked(stored, sha256) & (stored[:, 1] != _crc32_rows(features)))


def _crc32_rows(rows: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(rows)
    return np.fromiter((crc32(row) for row in rows), np.uint32, len(rows))


def find_row_violations(cache: "FeatureCache") -> list[str]:
    """Find rows of a cache that break the specification, or are damaged.

    Returns
    -------
    list of str
        What is wrong; empty where nothing is.
    """
    violations = []
    try:
        _ = cache.paths
    except CacheFormatError as error:
        violations.append(str(error))
    status, reason, sha256 = cache.status, cache.column("reason"), cache.column("sha256")
    if (status > FAILED).any():
        violations.append(f"status of row {int(np.argmax(status > FAILED))} is not 0, 1 or 2")
    if (reason[status == FAILED] == 0).any():
        violations.append("a failed row gives no reason")
    if not sha256[status == MARKED].any(axis=1).all():
        violations.append("a marked row has no sha256")
    for name in cache.layers:
        for rows, features in _iter_marked_blocks(cache, name, status):
            for row in rows[~np.isfinite(features).all(axis=1)]:
                violations.append(f"features/{name}: row {row} is marked but not finite")
            for row in rows[is_damaged(cache.checksums(name, rows), sha256[rows], features)]:
                violations.append(
                    f"features/{name}: the numbers of row {row} are not those that were "
                    "written; `featurize run ... --rehash` computes it again"
                )
    return violations


def find_damaged_rows(cache: "FeatureCache") -> np.ndarray:
    """Find marked rows whose numbers, in some layer, are not those that were written: bool (N,)."""
    damaged = np.zeros(cache.n_rows, bool)
    status, sha256 = cache.status, cache.column("sha256")
    for name in cache.layers if cache.has_checksums else ():
        for rows, features in _iter_marked_blocks(cache, name, status):
            damaged[rows] |= is_damaged(cache.checksums(name, rows), sha256[rows], features)
    return damaged


def count_unchecked_rows(cache: "FeatureCache") -> int:
    """Count marked rows that lack a checksum in some layer: those of format 1.0 have none."""
    rows = np.flatnonzero(cache.status == MARKED)
    sha256 = cache.column("sha256")[rows]
    unchecked = np.zeros(len(rows), bool)
    for name in cache.layers:
        unchecked |= is_unchecked(cache.checksums(name, rows), sha256)
    return int(unchecked.sum())


def _iter_marked_blocks(
    cache: "FeatureCache", layer: str, status: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Marked rows and their features, `MAX_BLOCK_BYTES` of features at most at a time."""
    rows, info = np.flatnonzero(status == MARKED), cache.layer(layer)
    step = max(1, MAX_BLOCK_BYTES // (info.dim * np.dtype(info.dtype).itemsize))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        yield block, cache.stored(layer, block)
