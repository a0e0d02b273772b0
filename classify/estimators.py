"""The heads as scikit-learn classifiers, for pipelines and grid searches of one's own."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from classify.features import Rows
from classify.heads import named
from classify.spectrum import Spectrum
from classify.splits import folding
from classify.statistics import spectra
from classify.training import Lesson, affordable, balanced_weights, train


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """One of the heads, its setting chosen by validation, as a scikit-learn classifier.

    Parameters
    ----------
    head : str
        As in `classify.fit`.
    class_weight : str, optional
        ``balanced`` or None.
    seed : int
        Decides the folds.

    Attributes
    ----------
    classes_ : array of shape (K,)
    setting_ : float, or None
        What was chosen.
    scorer_ : Linear or Fitted

    Examples
    --------
    ``make_pipeline(CachedFeatures("photos.h5", layer="layer3"), HeadClassifier("ridge"))``
    """

    def __init__(
        self, head: str = "softmax", *, class_weight: str | None = None, seed: int = 0
    ) -> None:
        self.head = head
        self.class_weight = class_weight
        self.seed = seed

    def fit(self, X: Any, y: Any) -> "HeadClassifier":
        """Choose the setting and train.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; used as float32.
        y : array of shape (n,)
            Labels of any kind.

        Raises
        ------
        UnknownHead, ValueError
        """
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("a classifier needs at least two classes; the data has only one class")
        kind, rows, balanced = named(self.head), Rows.of_array(X), self.class_weight == "balanced"
        K = len(self.classes_)
        folds = affordable(kind, rows, folding(numbers, self.seed), K)
        with threadpool_limits(1):
            basis: list[Spectrum] = []
            if kind.way in ("solved", "minimised"):
                uneven = balanced and kind.name == "ridge"
                weights = balanced_weights(numbers, K) if uneven else None
                basis = spectra(None, (), rows, folds, weights)
            found = train(kind, Lesson(rows, numbers, K, folds, basis, balanced))
        self.scorer_, self.setting_ = found.scorer, found.setting
        return self

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.scorer_.scores(validate_data(self, X, dtype=np.float32, reset=False))

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores: float32 (n, K), or (n,) for two classes."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The best class of each row: (n,)."""
        best = self._scores(X).argmax(axis=1)
        found: np.ndarray = self.classes_[best]
        return found
