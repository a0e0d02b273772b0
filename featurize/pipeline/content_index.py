"""Find rows by the content of their image, so that no image is embedded twice."""

import threading
from dataclasses import dataclass

import numpy as np

from featurize.cache.format import PENDING
from featurize.cache.integrity import is_damaged
from featurize.cache.reader import FeatureCache

PREFIX_BYTES, PREFIX_DTYPE = (
    8,
    "<u8",
)  # what tells apart the hashes of any collection but a forged one


@dataclass(frozen=True)
class StoredRow:
    """A finished row of an older cache.

    Attributes
    ----------
    cache : FeatureCache
    row : int
    reason : int
        Code of `featurize.images.reasons`; 0 if the row did not fail.
    """

    cache: FeatureCache
    row: int
    reason: int

    def features(self, layer: str) -> np.ndarray:
        """Read the row's features.

        Parameters
        ----------
        layer : str
            Dataset name.

        Returns
        -------
        float32 or float16 array of shape (1, D)
        """
        return self.cache.stored(layer, np.array([self.row]))

    def checksums(self, layer: str) -> np.ndarray:
        """Read the checksum of the row's features.

        Parameters
        ----------
        layer : str
            Dataset name.

        Returns
        -------
        uint32 array of shape (1, 2)
        """
        return self.cache.checksums(layer, np.array([self.row]))

    def is_sound(self, digest: bytes) -> bool:
        """Return whether the features of all layers match their checksums.

        Parameters
        ----------
        digest : bytes
            SHA-256 of the image.

        Returns
        -------
        bool
            True for a failed row, or one without checksums.
        """
        sha256 = np.frombuffer(digest, np.uint8).reshape(1, 32)
        return self.reason != 0 or not any(
            is_damaged(self.checksums(name), sha256, self.features(name))[0]
            for name in self.cache.layers
        )


class ContentIndex:
    """Index of rows by the SHA-256 of their image's bytes; shared by the decoding threads.

    It holds rows of the cache being written (finished, or computed by this run) and finished rows
    of older caches.
    """

    def __init__(self) -> None:
        self._current: dict[bytes, int] = {}
        self._older: dict[bytes, StoredRow] = {}
        self._lock = threading.Lock()

    def add_current_rows(self, sha256: np.ndarray, rows: np.ndarray) -> None:
        """Add finished rows of the cache being written.

        Parameters
        ----------
        sha256 : uint8 array of shape (N, 32)
            Hashes of all rows of the cache.
        rows : int array of shape (n,)
            The rows to add.
        """
        for row, digest in zip(rows.tolist(), _split_digests(sha256[rows]), strict=True):
            if any(digest):
                self._current.setdefault(digest, row)

    def add_older_cache(self, cache: FeatureCache, excluded: np.ndarray) -> None:
        """Add the finished rows of an older cache.

        Parameters
        ----------
        cache : FeatureCache
        excluded : bool array of shape (N,)
            Rows to leave out.
        """
        rows = np.flatnonzero((cache.status != PENDING) & ~excluded)
        reasons = cache.column("reason")
        for row, digest in zip(
            rows.tolist(), _split_digests(cache.column("sha256", rows)), strict=True
        ):
            if any(digest):  # images that could not be read have no hash
                self._older.setdefault(digest, StoredRow(cache, row, int(reasons[row])))

    def list_prefixes(self) -> np.ndarray:
        """List the beginnings of all hashes, for processes that have no index.

        Returns
        -------
        uint64 array of shape (n,)
            The first `PREFIX_BYTES` bytes of each, sorted.
        """
        digests = [*self._current, *self._older]
        data = b"".join(digest[:PREFIX_BYTES] for digest in digests)
        return np.sort(np.frombuffer(data, PREFIX_DTYPE))

    def claim(self, digest: bytes, row: int) -> int | StoredRow | None:
        """Look up a content, or claim it for a row.

        Parameters
        ----------
        digest : bytes
            SHA-256 of the image.
        row : int
            Row of the cache being written.

        Returns
        -------
        int, StoredRow or None
            The row of this cache or of an older one that has the content. None if there is none:
            then `row` is to compute it.
        """
        stored_row = self._older.get(digest)
        if stored_row is not None and stored_row.is_sound(digest):
            return stored_row
        with self._lock:
            first_row = self._current.setdefault(digest, row)
            return None if first_row == row else first_row


def _split_digests(sha256: np.ndarray) -> list[bytes]:
    data = sha256.tobytes()
    return [data[start : start + 32] for start in range(0, len(data), 32)]
