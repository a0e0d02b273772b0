"""Feature preparation for heads: signed square roots of unit length, or standardised columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from classify.errors import CallError
from featurize.text import did_you_mean

ROOT_L2, STANDARDISE = "root-l2", "standardise"
PREPARATIONS = (ROOT_L2, STANDARDISE)
MIN_IMAGES_PER_COLUMN = 20
"""From this many images per column on, standardised columns are tried as well. With fewer images
they were not better in measurements."""


def check_preparation(prepare: str | None) -> None:
    """Refuse an unknown preparation.

    Parameters
    ----------
    prepare : str, or None
        One of `PREPARATIONS`; None leaves the choice to validation.

    Raises
    ------
    CallError
        If there is no such preparation.
    """
    if prepare is not None and prepare not in PREPARATIONS:
        hint = did_you_mean(prepare, PREPARATIONS)
        raise CallError(
            f"features are prepared by {' or '.join(PREPARATIONS)}, not {prepare!r}{hint}"
        )


def list_preparations(prepare: str | None, n: int, dim: int) -> tuple[str, ...]:
    """List the preparations among which validation chooses.

    Parameters
    ----------
    prepare : str, or None
        The only one, where the user names it.
    n : int
        Number of training images.
    dim : int
        Number of columns.

    Returns
    -------
    tuple of str
        `prepare` alone where it is given; otherwise ``root-l2``, and ``standardise`` where there
        are at least 20 images per column.
    """
    if prepare is not None:
        return (prepare,)
    return PREPARATIONS if n >= MIN_IMAGES_PER_COLUMN * dim else (ROOT_L2,)


def root_l2(X: np.ndarray) -> np.ndarray:
    """Take signed square roots, then divide each row by its length.

    F. Perronnin, J. Sanchez and T. Mensink (2010), "Improving the Fisher Kernel for Large-Scale
    Image Classification", ECCV. Pooled features are mostly small, with a few large ones. The root
    reduces the weight of these few. The unit length removes the effect of bright or busy images.

    Parameters
    ----------
    X : float array of shape (n, D)
        Features of one layer. Each layer is prepared separately before several are joined.

    Returns
    -------
    float32 array of shape (n, D)
        Rows of length 1; a row of zeros stays zero.
    """
    X = np.asarray(X, np.float32)
    magnitude = np.abs(X)
    # The squares of the roots are the magnitudes, so their sum is a row's squared length.
    squared_length = magnitude.sum(axis=1, dtype=np.float64)[:, None]
    magnitude /= np.where(squared_length > 0, squared_length, 1).astype(np.float64)
    prepared: np.ndarray = np.copysign(np.sqrt(magnitude, out=magnitude), X)
    return prepared


def root_l2_by_layer(X: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Apply `root_l2` to each of several joined layers.

    Parameters
    ----------
    X : float array of shape (n, D)
        Joined layers.
    widths : sequence of int
        Columns of each layer; D in all.

    Returns
    -------
    float32 array of shape (n, D)
        Prepared features.
    """
    ends = np.cumsum(widths)
    return np.concatenate([root_l2(part) for part in np.split(X, ends[:-1], axis=1)], axis=1)


class RootL2(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Transformer that applies `root_l2`, for scikit-learn pipelines.

    Parameters
    ----------
    widths : sequence of int, optional
        Columns of each of several joined layers, which are prepared separately. One layer if not
        given.

    Examples
    --------
    ``make_pipeline(CachedFeatures("photos.h5"), RootL2(), LogisticRegression())``
    """

    def __init__(self, widths: Sequence[int] | None = None) -> None:
        self.widths = widths

    def fit(self, X: Any, y: Any = None) -> "RootL2":
        """Check the widths; nothing is fitted.

        Parameters
        ----------
        X : float array of shape (n, D)
            Features; their number of columns is remembered.
        y : object, optional
            Ignored.

        Returns
        -------
        RootL2
            This transformer.

        Raises
        ------
        ValueError
            If the widths do not add up to the columns of `X`.
        """
        X = validate_data(self, X, dtype=np.float32)
        if self.widths is not None and sum(self.widths) != X.shape[1]:
            raise ValueError(f"layers of {list(self.widths)} columns are not {X.shape[1]} in all")
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Prepare features.

        Parameters
        ----------
        X : float array of shape (n, D)
            Features.

        Returns
        -------
        float32 array of shape (n, D)
            Signed square roots in rows of length 1.
        """
        check_is_fitted(self, "n_features_in_")
        X = validate_data(self, X, dtype=np.float32, reset=False)
        return root_l2_by_layer(X, self.widths or [X.shape[1]])

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns, which are those of the input.

        Parameters
        ----------
        input_features : array of str of shape (D,), optional
            Names of the input columns.

        Returns
        -------
        object array of shape (D,)
            Name of each column.
        """
        from sklearn.utils.validation import _check_feature_names_in

        check_is_fitted(self, "n_features_in_")
        names: np.ndarray = _check_feature_names_in(self, input_features)
        return names

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # float32 always
        return tags
