"""Embeddings in two dimensions: a sample of rows, by PCA and by t-SNE."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from classify.data.features import FeatureRows
from classify.store import compute_digest, load_artifact, save_artifact
from featurize.cache.reader import FeatureCache

MAX_POINTS = 1_000  # a picture for each is most of a megabyte; t-SNE takes three seconds
PROJECTION_VERSION = 1  # to be raised when points would lie elsewhere
MIN_TSNE_ROWS = 20  # below it, t-SNE has no neighbours to speak of
PCA_COMPONENTS, TSNE_PERPLEXITY, TSNE_ITERATIONS = 50, 30, 500


@dataclass(frozen=True, eq=False)
class Projection:
    """Where rows lie in two dimensions.

    Attributes
    ----------
    rows : int array of shape (n,)
    pca : float array of shape (n, 2)
        The two directions of greatest variance of the standardised embeddings.
    tsne : float array of shape (n, 2), or None
        None for fewer than 20 rows.
    explained : float
        The share of the variance that the two directions of `pca` have.
    """

    rows: np.ndarray
    pca: np.ndarray
    tsne: np.ndarray | None
    explained_variance_ratio: float


class Projector:
    """Projects samples of a cache's rows, each once: it is kept beside the cache.

    Parameters
    ----------
    cache : FeatureCache
    seed : int
        Decides the sample.
    """

    def __init__(self, cache: FeatureCache, seed: int = 0) -> None:
        self._cache = cache
        # One order for all tasks: those over the same rows then show the same points.
        self._order = np.random.default_rng(seed).permutation(cache.n_rows)

    def project(self, layers: Sequence[str], rows: np.ndarray) -> Projection:
        """Project at most 1,000 of some rows.

        Parameters
        ----------
        layers : sequence of str
            Joined.
        rows : int array of shape (n,)
            Marked rows of the cache; two or more.
        """
        rank = np.argsort(self._order)[rows]
        chosen = np.sort(rows[np.argsort(rank)[:MAX_POINTS]])
        prints = [self._cache.layer(name).fingerprint for name in layers]
        contents = self._cache.column("sha256")[chosen]
        key = compute_digest([PROJECTION_VERSION, prints], contents)
        kept = load_artifact(self._cache, "map", key)
        if kept is not None:
            with suppress(KeyError, TypeError):
                explained = float(kept.metadata["explained"])
                return Projection(chosen, kept.arrays["pca"], kept.arrays.get("tsne"), explained)
        found = _compute_projection(
            chosen, FeatureRows.from_cache(self._cache, layers, chosen).to_array()
        )
        arrays = {"pca": found.pca}
        if found.tsne is not None:
            arrays["tsne"] = found.tsne
        save_artifact(
            self._cache, "map", key, arrays, {"explained": found.explained_variance_ratio}
        )
        return found


def _compute_projection(rows: np.ndarray, X: np.ndarray) -> Projection:
    # As the heads see them: standardised. A column that is constant says nothing.
    X = X - X.mean(axis=0)
    spread = X.std(axis=0)
    X /= np.where(spread > 1e-6, spread, np.inf)
    if not X.any():  # all alike: every point at the origin
        return Projection(rows, np.zeros((len(rows), 2)), None, 0.0)
    n = max(1, min(PCA_COMPONENTS, X.shape[1], len(rows) - 1))
    pca = PCA(n, svd_solver="full" if X.shape[1] <= 512 else "randomized", random_state=0)
    found = pca.fit_transform(X)
    flat = np.zeros((len(rows), 2))
    flat[:, : min(n, 2)] = found[:, :2]
    tsne = None
    if len(rows) >= MIN_TSNE_ROWS:
        perplexity = min(TSNE_PERPLEXITY, (len(rows) - 1) / 3)
        start = flat / max(flat[:, 0].std(), 1e-12) * 1e-4
        tsne = TSNE(
            perplexity=perplexity, init=start, max_iter=TSNE_ITERATIONS, random_state=0, n_jobs=1
        ).fit_transform(found)
    return Projection(rows, flat, tsne, float(pca.explained_variance_ratio_[:2].sum()))
