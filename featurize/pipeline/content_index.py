"""Which contents are at hand already, so that no image is ever embedded twice."""

import threading
from dataclasses import dataclass

import numpy as np

from featurize.cache.format import PENDING
from featurize.cache.integrity import is_damaged
from featurize.cache.reader import FeatureCache


@dataclass(frozen=True)
class StoredRow:
    """A finished row of an older cache; `reason` is not 0 where it failed."""

    cache: FeatureCache
    row: int
    reason: int

    def features(self, layer: str) -> np.ndarray:
        """Its features: shape (1, D)."""
        return self.cache.stored(layer, np.array([self.row]))

    def checksums(self, layer: str) -> np.ndarray:
        """Their checksum: uint32 (1, 2)."""
        return self.cache.checksums(layer, np.array([self.row]))

    def is_sound(self, digest: bytes) -> bool:
        """Whether its features, of every layer, are those that were written."""
        sha256 = np.frombuffer(digest, np.uint8).reshape(1, 32)
        return self.reason != 0 or not any(
            is_damaged(self.checksums(name), sha256, self.features(name))[0]
            for name in self.cache.layers
        )


class ContentIndex:
    """Rows by the SHA-256 of their image's bytes; shared by the decoding threads.

    A content is at hand in the cache being written (a marked row, or one that this run is
    computing) or in an older cache that is being grown from.
    """

    def __init__(self) -> None:
        self._current: dict[bytes, int] = {}
        self._older: dict[bytes, StoredRow] = {}
        self._lock = threading.Lock()

    def add_current_rows(self, sha256: np.ndarray, rows: np.ndarray) -> None:
        """Rows of the cache being written: their hashes (n, 32) and numbers (n,)."""
        for row, digest in zip(rows.tolist(), _split_digests(sha256[rows]), strict=True):
            if any(digest):
                self._current.setdefault(digest, row)

    def add_older_cache(self, cache: FeatureCache, excluded: np.ndarray) -> None:
        """Every finished row of a cache that is grown from, but some: bool (N,)."""
        rows = np.flatnonzero((cache.status != PENDING) & ~excluded)
        reasons = cache.column("reason")
        for row, digest in zip(
            rows.tolist(), _split_digests(cache.column("sha256")[rows]), strict=True
        ):
            if any(digest):  # rows that could not be read have no hash
                self._older.setdefault(digest, StoredRow(cache, row, int(reasons[row])))

    def claim(self, digest: bytes, row: int) -> int | StoredRow | None:
        """Where this content is at hand; None makes `row` the one that computes it."""
        older = self._older.get(digest)
        if older is not None and older.is_sound(digest):
            return older
        with self._lock:
            first = self._current.setdefault(digest, row)
            return None if first == row else first


def _split_digests(sha256: np.ndarray) -> list[bytes]:
    data = sha256.tobytes()
    return [data[start : start + 32] for start in range(0, len(data), 32)]
