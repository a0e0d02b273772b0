"""How features are prepared for a head: signed roots of unit length, or standardised columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from classify.errors import CallError

ROOT_L2, STANDARDISE = "root-l2", "standardise"
PREPARATIONS = (ROOT_L2, STANDARDISE)
MIN_IMAGES_PER_COLUMN = 20
"""Images a column, from which on standardised columns are tried as well: only where the columns
were so few were they seen to be better."""


def check_preparation(prepare: str | None) -> None:
    """Refuse a preparation that there is not: CallError."""
    if prepare is not None and prepare not in PREPARATIONS:
        raise CallError(f"features are prepared by {' or '.join(PREPARATIONS)}, not {prepare!r}")


def list_preparations(prepare: str | None, n: int, dim: int) -> tuple[str, ...]:
    """Those among which validation chooses, of n images with `dim` columns: one if it is given."""
    if prepare is not None:
        return (prepare,)
    return PREPARATIONS if n >= MIN_IMAGES_PER_COLUMN * dim else (ROOT_L2,)


def root_l2(X: np.ndarray) -> np.ndarray:
    """Signed square roots, and then each row divided by its length.

    F. Perronnin, J. Sanchez and T. Mensink (2010), "Improving the Fisher Kernel for Large-Scale
    Image Classification", ECCV. Pooled features are mostly small, with a few that are large: the
    root keeps these few from deciding alone, and the length keeps bright or busy images from it.

    Parameters
    ----------
    X : float array of shape (n, D)
        Of one layer; each layer is prepared by itself before several are joined.

    Returns
    -------
    float32 array of shape (n, D)
        Rows of length 1; a row of zeros stays one.
    """
    X = np.asarray(X, np.float32)
    size = np.abs(X)
    # The squares of the roots are the sizes, so this is the length of a row of roots, squared.
    total = size.sum(axis=1, dtype=np.float64)[:, None]
    size /= np.where(total > 0, total, 1).astype(np.float64)
    found: np.ndarray = np.copysign(np.sqrt(size, out=size), X)
    return found


def root_l2_by_layer(X: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """`root_l2` of each layer: float32 (n, D), from joined layers of these widths."""
    ends = np.cumsum(widths)
    return np.concatenate([root_l2(part) for part in np.split(X, ends[:-1], axis=1)], axis=1)


class RootL2(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Signed square roots in rows of length 1, as heads have them: `root_l2` for pipelines.

    Parameters
    ----------
    widths : sequence of int, optional
        Of the layers that are joined: each is prepared by itself. One layer if not given.

    Examples
    --------
    ``make_pipeline(CachedFeatures("photos.h5"), RootL2(), LogisticRegression())``
    """

    def __init__(self, widths: Sequence[int] | None = None) -> None:
        self.widths = widths

    def fit(self, X: Any, y: Any = None) -> "RootL2":
        """Check the widths; nothing is learnt.

        Raises
        ------
        ValueError
            If they are not those of `X`.
        """
        X = validate_data(self, X, dtype=np.float32)
        if self.widths is not None and sum(self.widths) != X.shape[1]:
            raise ValueError(f"layers of {list(self.widths)} columns are not {X.shape[1]} in all")
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Prepare features: float32 (n, D)."""
        check_is_fitted(self, "n_features_in_")
        X = validate_data(self, X, dtype=np.float32, reset=False)
        return root_l2_by_layer(X, self.widths or [X.shape[1]])

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names as they came in: text array of shape (D,)."""
        from sklearn.utils.validation import _check_feature_names_in

        check_is_fitted(self, "n_features_in_")
        names: np.ndarray = _check_feature_names_in(self, input_features)
        return names

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # float32 always
        return tags
