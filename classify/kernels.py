"""An approximate kernel: rows of features as similarities to a few of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.kernel_approximation import Nystroem
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC

from classify.features import Rows
from classify.scaling import scaled
from classify.scorers import Fitted, Linear
from classify.vectors import width

LANDMARKS = 1000  # twice as many were no better on CIFAR-10, and five times as slow to map
SAMPLE = 20_000  # rows whose statistics scale the features


@dataclass(frozen=True, eq=False)
class Mapped(Rows):
    """Rows seen through a kernel map, block by block: D is the number of landmarks."""

    kernel: Any = None

    @property
    def dim(self) -> int:
        """How many landmarks there are."""
        return len(self.kernel[-1].components_)

    def at(self, positions: np.ndarray) -> "Mapped":
        """Some of them."""
        return replace(self, rows=self.rows[positions])

    def take(self) -> np.ndarray:
        """A copy of them all."""
        return np.concatenate([block for _, block in self.blocks()])

    def blocks(self, width: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of similarities, float32 (m, D)."""
        for where, block in Rows(self.parts, self.rows, self.rooted).blocks(max(width, self.dim)):
            # float64 inside: the map divides by numbers down to 1e-6.
            yield where, self.kernel.transform(block.astype(np.float64)).astype(np.float32)


def rbf(rows: Rows, times: float, seed: int = 0) -> Pipeline:
    """A radial basis kernel on scaled features, approximated by some of the rows.

    Williams & Seeger (2001), "Using the Nystroem method to speed up kernel machines", NIPS.

    Parameters
    ----------
    rows : Rows
        Training rows; landmarks and statistics come from at most `SAMPLE` of them.
    times : float
        Gamma, as a multiple of `classify.vectors.width`.

    Returns
    -------
    Pipeline
        Fitted; from (n, D) to (n, at most `LANDMARKS`).
    """
    some = np.random.default_rng(seed).permutation(len(rows))[:SAMPLE]
    X = rows.at(np.sort(some)).take().astype(np.float64)
    scaler, Z = scaled(X, whole=rows.rooted)
    count = min(LANDMARKS, len(Z))
    kernel = Nystroem(gamma=times * width(Z), n_components=count, random_state=seed).fit(Z)
    return make_pipeline(scaler, kernel)


def joined(kernel: Pipeline, linear: Linear, n_classes: int) -> Fitted:
    """A kernel and what was learnt on it as one scikit-learn pipeline."""
    weights = linear.coef / linear.scale
    shift = linear.intercept - weights @ linear.mean
    if n_classes == 2:
        weights, shift = weights[1:] - weights[:1], shift[1:] - shift[:1]
    svm = LinearSVC()
    svm.classes_, svm.coef_, svm.intercept_ = np.arange(n_classes), weights, shift
    svm.n_features_in_ = weights.shape[1]
    steps = [*kernel.steps, ("svm", svm)]
    return Fitted(Pipeline(steps), kernel.n_features_in_, n_classes)
