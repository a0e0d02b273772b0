"""Label-free statistics: all that ridge, LDA and class means need to know of features.

One pass over the rows gives their count, sum and Gram matrix. Without some rows they are the whole
less those rows' own, so folds and held-out images cost no further pass over the rest.
"""

from dataclasses import dataclass

import numpy as np

from classify.errors import CallError
from classify.features import Rows

MAX_BYTES = 4 << 30


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, sum and Gram matrix of each of P parts of some rows.

    Attributes
    ----------
    count : float64 array of shape (P,)
        The sum of the weights.
    total : float64 array of shape (P, D)
    gram : float64 array of shape (P, D, D)
        Not centred.
    """

    count: np.ndarray
    total: np.ndarray
    gram: np.ndarray

    @classmethod
    def of(
        cls,
        rows: Rows,
        part: np.ndarray | None = None,
        n_parts: int = 1,
        weights: np.ndarray | None = None,
    ) -> "Moments":
        """Gather them in one pass, in memory that does not grow with the rows.

        Parameters
        ----------
        rows : Rows
            n of them.
        part : int array of shape (n,), optional
            Which part each row belongs to, from 0; all to one if not given.
        n_parts : int
            P.
        weights : float array of shape (n,), optional
            1 each if not given.

        Raises
        ------
        CallError
            If the features are too wide for their Gram matrices to fit into memory.
        """
        width = rows.dim
        part = np.zeros(len(rows), np.intp) if part is None else part
        if 8 * n_parts * width**2 > MAX_BYTES:
            raise CallError(
                f"features of {width:,} columns are too wide for ridge and lda on {len(rows):,} "
                "images; use another head, fewer layers, or a pool that is not `none`"
            )
        count, total = np.zeros(n_parts), np.zeros((n_parts, width))
        gram = np.zeros((n_parts, width, width))
        for where, block in rows.blocks():
            for p in np.unique(part[where]):
                mine = part[where] == p
                # float64 from the start: what is subtracted later must not have been rounded.
                x = block[mine].astype(np.float64)
                w = np.ones(len(x)) if weights is None else weights[where][mine]
                scaled = x if weights is None else x * w[:, None]
                count[p] += w.sum()
                total[p] += w @ x
                gram[p] += scaled.T @ x
        return cls(count, total, gram)

    def less(self, other: "Moments") -> "Moments":
        """What remains without some of the rows, part by part."""
        return Moments(self.count - other.count, self.total - other.total, self.gram - other.gram)

    def without(self, part: int | None = None) -> tuple[float, np.ndarray, np.ndarray]:
        """Count, mean (D,) and centred Gram matrix (D, D) of all parts but one, or of all."""
        count, total, gram = self.count.sum(), self.total.sum(axis=0), self.gram.sum(axis=0)
        if part is not None:
            count, total = count - self.count[part], total - self.total[part]
            gram = gram - self.gram[part]
        mean = total / count
        gram = gram - count * np.outer(mean, mean)
        return float(count), mean, gram
