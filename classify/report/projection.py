"""Project a sample of embeddings to two dimensions, by PCA and by t-SNE."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from classify.data.features import FeatureRows
from classify.store import compute_digest, load_artifact, save_artifact
from featurize.cache.reader import FeatureCache

MAX_POINTS = 1_000  # their thumbnails take most of a megabyte, and t-SNE takes three seconds
PROJECTION_VERSION = 1  # raise it when the computed coordinates change
MIN_TSNE_ROWS = 20  # below it, t-SNE has too few neighbours
PCA_COMPONENTS, TSNE_PERPLEXITY, TSNE_ITERATIONS = 50, 30, 500


@dataclass(frozen=True, eq=False)
class Projection:
    """Coordinates of rows in two dimensions.

    Attributes
    ----------
    rows : int array of shape (n,)
    pca : float array of shape (n, 2)
        First two principal components of the standardised embeddings.
    tsne : float array of shape (n, 2), or None
        None for fewer than 20 rows.
    explained_variance_ratio : float
        Fraction of the variance in the two components of `pca`.
    """

    rows: np.ndarray
    pca: np.ndarray
    tsne: np.ndarray | None
    explained_variance_ratio: float


class Projector:
    """Projects samples of a cache's rows, and stores the results next to the cache.

    Parameters
    ----------
    cache : FeatureCache
    seed : int
        Seed of the sample.
    """

    def __init__(self, cache: FeatureCache, seed: int = 0) -> None:
        self._cache = cache
        # One order for all tasks, so that tasks over the same rows show the same points.
        self._order = np.random.default_rng(seed).permutation(cache.n_rows)

    def project(self, layers: Sequence[str], rows: np.ndarray) -> Projection:
        """Project a sample of at most 1,000 of the given rows.

        Parameters
        ----------
        layers : sequence of str
            Joined.
        rows : int array of shape (n,)
            Rows of the cache with features; two or more.

        Returns
        -------
        Projection
            Of the sampled rows, ascending.
        """
        rank = np.argsort(self._order)[rows]
        chosen = np.sort(rows[np.argsort(rank)[:MAX_POINTS]])
        fingerprints = [self._cache.layer(name).fingerprint for name in layers]
        image_hashes = self._cache.column("sha256", chosen)
        key = compute_digest([PROJECTION_VERSION, fingerprints], image_hashes)
        artifact = load_artifact(self._cache, "map", key)
        if artifact is not None:
            with suppress(KeyError, TypeError):
                explained = float(artifact.metadata["explained"])
                return Projection(
                    chosen, artifact.arrays["pca"], artifact.arrays.get("tsne"), explained
                )
        projection = _compute_projection(
            chosen, FeatureRows.from_cache(self._cache, layers, chosen).to_array()
        )
        arrays = {"pca": projection.pca}
        if projection.tsne is not None:
            arrays["tsne"] = projection.tsne
        save_artifact(
            self._cache, "map", key, arrays, {"explained": projection.explained_variance_ratio}
        )
        return projection


def _compute_projection(rows: np.ndarray, X: np.ndarray) -> Projection:
    # Standardised, as for the heads; constant columns become 0.
    """Compute PCA (randomised for over 512 columns), and t-SNE from up to 50 components."""
    X = X - X.mean(axis=0)
    std = X.std(axis=0)
    X /= np.where(std > 1e-6, std, np.inf)
    if not X.any():  # all rows are equal: every point at the origin
        return Projection(rows, np.zeros((len(rows), 2)), None, 0.0)
    n = max(1, min(PCA_COMPONENTS, X.shape[1], len(rows) - 1))
    pca = PCA(n, svd_solver="full" if X.shape[1] <= 512 else "randomized", random_state=0)
    components = pca.fit_transform(X)
    first_two = np.zeros((len(rows), 2))
    first_two[:, : min(n, 2)] = components[:, :2]
    tsne = None
    if len(rows) >= MIN_TSNE_ROWS:
        perplexity = min(TSNE_PERPLEXITY, (len(rows) - 1) / 3)
        initial = first_two / max(first_two[:, 0].std(), 1e-12) * 1e-4
        tsne = TSNE(
            perplexity=perplexity, init=initial, max_iter=TSNE_ITERATIONS, random_state=0, n_jobs=1
        ).fit_transform(components)
    return Projection(rows, first_two, tsne, float(pca.explained_variance_ratio_[:2].sum()))
