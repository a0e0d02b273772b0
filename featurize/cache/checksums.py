"""A checksum for each row and layer: whether the numbers on disk are those that were written.

Two CRC-32 a row and layer: of the row's ``sha256``, and of its features. The first says whose
checksum it is. A release that knows nothing of checksums writes a row and leaves an older one
there; then the first no longer agrees, and the row counts as having none.
"""

from zlib import crc32

import numpy as np


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
