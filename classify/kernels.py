"""An approximate kernel: rows of features as similarities to a few of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.kernel_approximation import Nystroem
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC

from classify.data.features import FeatureRows
from classify.scaling import fit_and_scale
from classify.heads.models import LinearModel, SklearnModel
from classify.solvers.rbf_svm import compute_gamma_scale

MAX_LANDMARKS = 1000  # twice as many were no better on CIFAR-10, and five times as slow to map
MAX_SCALING_ROWS = 20_000  # rows whose statistics scale the features


@dataclass(frozen=True, eq=False)
class KernelRows(FeatureRows):
    """Rows seen through a kernel map, block by block: D is the number of landmarks."""

    kernel: Any = None

    @property
    def dim(self) -> int:
        """How many landmarks there are."""
        return len(self.kernel[-1].components_)

    def subset(self, positions: np.ndarray) -> "KernelRows":
        """Some of them."""
        return replace(self, rows=self.rows[positions])

    def to_array(self) -> np.ndarray:
        """A copy of them all."""
        return np.concatenate([block for _, block in self.iter_blocks()])

    def iter_blocks(self, n_outputs: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of similarities, float32 (m, D)."""
        for where, block in FeatureRows(self.parts, self.rows, self.is_root_l2).iter_blocks(
            max(n_outputs, self.dim)
        ):
            # float64 inside: the map divides by numbers down to 1e-6.
            yield where, self.kernel.transform(block.astype(np.float64)).astype(np.float32)


def fit_rbf_map(rows: FeatureRows, gamma_factor: float, seed: int = 0) -> Pipeline:
    """A radial basis kernel on scaled features, approximated by some of the rows.

    Williams & Seeger (2001), "Using the Nystroem method to speed up kernel machines", NIPS.

    Parameters
    ----------
    rows : FeatureRows
        Training rows; landmarks and statistics come from at most `MAX_SCALING_ROWS` of them.
    gamma_factor : float
        Gamma, as a multiple of `classify.solvers.rbf_svm.compute_gamma_scale`.

    Returns
    -------
    Pipeline
        Fitted; from (n, D) to (n, at most `MAX_LANDMARKS`).
    """
    some = np.random.default_rng(seed).permutation(len(rows))[:MAX_SCALING_ROWS]
    X = rows.subset(np.sort(some)).to_array().astype(np.float64)
    scaler, Z = fit_and_scale(X, global_scale=rows.is_root_l2)
    count = min(MAX_LANDMARKS, len(Z))
    kernel = Nystroem(
        gamma=gamma_factor * compute_gamma_scale(Z), n_components=count, random_state=seed
    ).fit(Z)
    return make_pipeline(scaler, kernel)


def to_sklearn_model(kernel: Pipeline, linear: LinearModel, n_classes: int) -> SklearnModel:
    """A kernel and what was learnt on it as one scikit-learn pipeline."""
    weights = linear.coef / linear.scale
    shift = linear.intercept - weights @ linear.mean
    if n_classes == 2:
        weights, shift = weights[1:] - weights[:1], shift[1:] - shift[:1]
    svm = LinearSVC()
    svm.classes_, svm.coef_, svm.intercept_ = np.arange(n_classes), weights, shift
    svm.n_features_in_ = weights.shape[1]
    steps = [*kernel.steps, ("svm", svm)]
    return SklearnModel(Pipeline(steps), kernel.n_features_in_, n_classes)
