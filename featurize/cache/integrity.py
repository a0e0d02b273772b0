"""Integrity of a cache: checksums per row, image paths, and whether the file was replaced.

A checksum is two CRC-32 values: of the row's ``sha256`` and of its features. The first identifies
the image that the checksum belongs to. A release without checksums rewrites a row and leaves the
old checksum; then the first value no longer matches, and the row counts as unchecked.

`find_gaps` and `checksum_gaps` serve to detect that a file was replaced while it is open.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from featurize.cache.format import FAILED, MARKED, Extent
from featurize.errors import CacheFormatError
from featurize.files import pread_into

if TYPE_CHECKING:
    from featurize.cache.reader import FeatureCache

MAX_SEALED_BYTES = 1 << 18  # between the arrays; metadata of a cache takes kilobytes
# A path component that is empty, . or ..; or a zero byte.
_NON_PLAIN_PATH = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|\0")
BLOCK_ROWS = 1_000_000  # of columns, in a pass over all rows
MAX_BLOCK_BYTES = 64 << 20  # features held at a time in a pass over a layer


def compute_checksums(sha256: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Compute the checksums of some rows of one layer.

    Parameters
    ----------
    sha256 : uint8 array of shape (n, 32)
    features : array of shape (n, D)
        In the dtype in which they are stored.

    Returns
    -------
    uint32 array of shape (n, 2)
        CRC-32 (ISO-HDLC, as in zlib and PNG) of each row's hash and of its features.
    """
    return np.column_stack([_crc32_rows(sha256), _crc32_rows(features)])


def is_unchecked(stored: np.ndarray, sha256: np.ndarray) -> np.ndarray:
    """Return which rows have no checksum, or one of another image.

    Parameters
    ----------
    stored : uint32 array of shape (n, 2)
        Checksums as in the file.
    sha256 : uint8 array of shape (n, 32)
        Of each row's image.

    Returns
    -------
    bool array of shape (n,)
    """
    return np.asarray((stored[:, 0] != _crc32_rows(sha256)) | ~stored.any(axis=1))


def is_damaged(stored: np.ndarray, sha256: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return which rows differ from what was written.

    Parameters
    ----------
    stored : uint32 array of shape (n, 2)
        Checksums as in the file.
    sha256 : uint8 array of shape (n, 32)
        Of each row's image.
    features : array of shape (n, D)
        As in the file.

    Returns
    -------
    bool array of shape (n,)
        False for rows without a checksum.
    """
    return np.asarray(~is_unchecked(stored, sha256) & (stored[:, 1] != _crc32_rows(features)))


def _crc32_rows(rows: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(rows)
    return np.fromiter((crc32(row) for row in rows), np.uint32, len(rows))


def find_row_violations(cache: "FeatureCache") -> list[str]:
    """Find rows of a cache that break the specification or are damaged.

    Parameters
    ----------
    cache : FeatureCache

    Returns
    -------
    list of str
        One sentence per violation; empty for a sound cache.
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
    """Find marked rows whose features, in any layer, differ from what was written.

    Parameters
    ----------
    cache : FeatureCache

    Returns
    -------
    bool array of shape (N,)
    """
    damaged = np.zeros(cache.n_rows, bool)
    status, sha256 = cache.status, cache.column("sha256")
    for name in cache.layers if cache.has_checksums else ():
        for rows, features in _iter_marked_blocks(cache, name, status):
            damaged[rows] |= is_damaged(cache.checksums(name, rows), sha256[rows], features)
    return damaged


def count_unchecked_rows(cache: "FeatureCache") -> int:
    """Count marked rows without a checksum in some layer.

    Parameters
    ----------
    cache : FeatureCache
        A cache of format 1.0 has no checksums.

    Returns
    -------
    int
    """
    count = 0
    for block in iter_row_blocks(cache.n_rows):
        rows = block[cache.column("status", block) == MARKED]
        sha256, unchecked = cache.column("sha256", rows), np.zeros(len(rows), bool)
        for name in cache.layers:
            unchecked |= is_unchecked(cache.checksums(name, rows), sha256)
        count += int(unchecked.sum())
    return count


def iter_row_blocks(n_rows: int) -> Iterator[np.ndarray]:
    """Yield the numbers of all rows, a million at a time.

    Parameters
    ----------
    n_rows : int

    Yields
    ------
    intp array of shape (n,)
        Row numbers, ascending.
    """
    for start in range(0, n_rows, BLOCK_ROWS):
        yield np.arange(start, min(start + BLOCK_ROWS, n_rows))


def _iter_marked_blocks(
    cache: "FeatureCache", layer: str, status: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield marked rows and their features, at most `MAX_BLOCK_BYTES` of features at a time."""
    rows, info = np.flatnonzero(status == MARKED), cache.layer(layer)
    block_rows = max(1, MAX_BLOCK_BYTES // (info.dim * np.dtype(info.dtype).itemsize))
    for start in range(0, len(rows), block_rows):
        block = rows[start : start + block_rows]
        yield block, cache.stored(layer, block)


def decode_paths(column: np.ndarray, cache_path: Path, *, is_whole: bool = False) -> list[str]:
    """Decode image paths, and check that they are safe.

    Parameters
    ----------
    column : bytes array of shape (n,)
        Of ``images/path``, some rows or all.
    cache_path : Path
        The cache, for messages.
    is_whole : bool
        Whether it is the whole column, which is sorted.

    Returns
    -------
    list of str
        n relative POSIX paths.

    Raises
    ------
    CacheFormatError
        If a path is not UTF-8, is absolute or leads out of the folder; or, of a whole column, is
        repeated or out of order.
    """
    try:
        paths = [path.decode() for path in column.tolist()]
    except UnicodeDecodeError as error:
        raise CacheFormatError(f"{cache_path}: a path is not UTF-8: {error}") from error
    for previous, path in zip(["", *paths], paths, strict=False):
        if is_whole and path <= previous:
            raise CacheFormatError(f"{cache_path}: path {path!r} is out of order or repeated")
        if not _NON_PLAIN_PATH.search(path):
            continue
        if path.startswith("/") or ".." in path.split("/"):
            raise CacheFormatError(f"{cache_path}: path {path!r} leads out of the folder")
        raise CacheFormatError(f"{cache_path}: path {path!r} is not the plain one of a file")
    return paths


def find_gaps(extents: Iterable[Extent], file_bytes: int) -> list[tuple[int, int]]:
    """Find the bytes of a file that belong to no array.

    Parameters
    ----------
    extents : iterable of Extent
        The arrays, in any order.
    file_bytes : int
        Size of the file.

    Returns
    -------
    list of (int, int)
        First byte and end of each gap, ascending; at most `MAX_SEALED_BYTES` bytes in total.
    """
    gaps, end, n_left = [], 0, MAX_SEALED_BYTES
    for extent in sorted(extents, key=lambda extent: extent.offset):
        start = min(extent.offset, end + n_left)
        if start > end:
            gaps.append((end, start))
            n_left -= start - end
        end = max(end, extent.offset + extent.row_bytes * extent.shape[0])
    if min(file_bytes, end + n_left) > end:
        gaps.append((end, min(file_bytes, end + n_left)))
    return gaps


def checksum_gaps(fd: int, gaps: Sequence[tuple[int, int]]) -> int:
    """Compute the CRC-32 of the bytes in the gaps between arrays.

    Parameters
    ----------
    fd : int
        The open file.
    gaps : sequence of (int, int)
        As `find_gaps` returns them.

    Returns
    -------
    int
    """
    checksum = 0
    for start, stop in gaps:
        data = memoryview(bytearray(stop - start))
        checksum = crc32(data[: pread_into(fd, data, start)], checksum)
    return checksum
